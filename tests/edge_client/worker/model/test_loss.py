# SPDX-License-Identifier: Apache-2.0
"""Chunked cross-entropy against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edge_client.worker.model.loss import IGNORE_INDEX, chunked_cross_entropy, chunked_scores
from edge_client.worker.model.weights import FloatWeight, Int8Weight, Weight
from fedcore.weights.quantise import quantise_weight

TOKENS, FEATURES, WORDS = 29, 16, 101


def weights(kind: str) -> tuple[Weight, Tensor]:
    w = torch.randn(WORDS, FEATURES, generator=torch.Generator().manual_seed(2))
    if kind == "int8":
        q, scale = (torch.from_numpy(part) for part in quantise_weight(w.numpy()))
        return Int8Weight(q, scale), q.double() * scale.double()[:, None]
    return FloatWeight(w.to(getattr(torch, kind))), w.to(getattr(torch, kind)).double()


def case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, TOKENS, FEATURES, generator=generator) * 3
    labels = torch.randint(0, WORDS, (1, TOKENS), generator=generator)
    labels[0, 3:9] = IGNORE_INDEX
    return hidden, labels


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("chunk_tokens", "block_rows"), [(1, 7), (8, 40), (1000, 1000)])
def test_loss_and_gradient_equal_the_reference(
    kind: str, dtype: torch.dtype, chunk_tokens: int, block_rows: int
) -> None:
    weight, dense = weights(kind)
    hidden, labels = case()
    hidden = hidden.to(dtype)
    leaf = hidden.clone().requires_grad_(True)
    loss = chunked_cross_entropy(leaf, weight, labels, chunk_tokens=chunk_tokens, block_rows=block_rows)
    (2.5 * loss).backward()

    reference = hidden.double().requires_grad_(True)
    expected = F.cross_entropy((reference @ dense.T).view(-1, WORDS), labels.view(-1), ignore_index=IGNORE_INDEX)
    (2.5 * expected).backward()
    assert leaf.grad is not None and reference.grad is not None
    assert loss.dtype == torch.float32 and leaf.grad.dtype == dtype
    # bfloat16 rounds the logits, up to some thirty in size here, to 8 bits.
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert abs(float(loss) - float(expected)) <= tolerance * float(expected)
    assert float((leaf.grad - reference.grad).abs().max()) <= tolerance * float(reference.grad.abs().max())
    assert not leaf.grad[0, 3:9].any()


def test_scores_are_the_summed_loss_and_how_many_labels_are_the_likeliest_word() -> None:
    weight, dense = weights("int8")
    hidden, _ = case()
    likeliest = (hidden[0].double() @ dense.T).argmax(dim=1)
    labels = likeliest.clone()
    labels[::3] = (labels[::3] + 1) % WORDS
    loss, right = chunked_scores(hidden[0], weight, labels, chunk_tokens=4)
    assert int(right) == int((labels == likeliest).sum()) == 19
    torch.testing.assert_close(loss, TOKENS * chunked_cross_entropy(hidden[0], weight, labels))


def test_parts_of_a_batch_add_up_with_its_count() -> None:
    weight, _ = weights("float32")
    hidden, labels = case()
    whole = chunked_cross_entropy(hidden, weight, labels)
    count = int((labels != IGNORE_INDEX).sum())
    parts = [
        chunked_cross_entropy(hidden[:, rows], weight, labels[:, rows], count=count)
        for rows in (slice(0, 11), slice(11, None))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-6, atol=1e-6)


def test_no_label_gives_zero_not_nan() -> None:
    weight, _ = weights("float32")
    hidden, labels = case()
    leaf = hidden.clone().requires_grad_(True)
    loss = chunked_cross_entropy(leaf, weight, torch.full_like(labels, IGNORE_INDEX))
    loss.backward()
    assert float(loss) == 0
    assert leaf.grad is not None and not leaf.grad.any()


def test_large_logits_do_not_overflow() -> None:
    weight, dense = weights("float32")
    hidden, labels = case()
    loss = chunked_cross_entropy(hidden * 1e3, weight, labels)
    expected = F.cross_entropy(
        ((hidden * 1e3).double() @ dense.T).view(-1, WORDS), labels.view(-1), ignore_index=IGNORE_INDEX
    )
    assert abs(float(loss) - float(expected)) <= 1e-5 * float(expected)


def test_evaluation_computes_no_gradient() -> None:
    weight, _ = weights("int8")
    hidden, labels = case()
    assert not chunked_cross_entropy(hidden, weight, labels).requires_grad
