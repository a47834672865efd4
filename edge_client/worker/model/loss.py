# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy over a large vocabulary without its logits.

With 32,000 words the logits of 1,024 tokens take 131 MB, and a plain loss holds three to four matrices of that size:
more than all else that training keeps. Since the output embedding is frozen, loss and gradient of the hidden states can
be had chunk by chunk of tokens in the forward pass, and the backward pass only scales the gradient.

Legend: t tokens, n features, v words, W (v, n) the output embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edge_client.worker.model.head import OutputHead, Shaping
from edge_client.worker.model.weights import FloatWeight, Scratch, Weight, row_blocks, worth_running

__all__ = ["IGNORE_INDEX", "chunked_cross_entropy", "chunked_scores"]

IGNORE_INDEX = -100
"""Label of tokens that have no part in the loss, as everywhere in PyTorch."""


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Weight,
    labels: Tensor,
    *,
    count: int | None = None,
    chunk_tokens: int = 128,
    block_rows: int = 4096,
) -> Tensor:
    """Cross-entropy of softmax(hidden W^T), or of an output head's logits, differentiable in `hidden` only.

    Args:
        hidden: (..., n), already shifted: the state that predicts the label in the same place.
        weight: The frozen W (v, n), in floating point or int8; an `OutputHead`'s bias, multiplier and soft cap count.
        labels: int64 (...), 0 to v - 1, or IGNORE_INDEX.
        count: Divisor of the sum; None means the number of labels that count, the mean. With gradient accumulation, the
            whole batch's number.
        chunk_tokens: Tokens whose logits exist at a time; their float32 logits take 4 v bytes a token.
        block_rows: Rows of W that are used, and copied or dequantised where they must be, at a time.

    Returns:
        A float32 scalar; 0 where no label counts.
    """
    flat, target = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    if count is None:
        count = int((target != IGNORE_INDEX).sum())
    loss: Tensor = _Loss.apply(flat, weight, target, max(count, 1), chunk_tokens, block_rows, [])  # type: ignore[no-untyped-call]
    return loss


def chunked_scores(
    hidden: Tensor, weight: Weight, labels: Tensor, *, chunk_tokens: int = 128, block_rows: int = 4096
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy, a float32 scalar, and how many labels are the likeliest word, int64; for measuring.

    Args:
        hidden: (t, n), as of `chunked_cross_entropy`.
        weight: The frozen W (v, n).
        labels: int64 (t,).
        chunk_tokens: Tokens whose logits exist at a time.
        block_rows: Rows of W that are used at a time.
    """
    right = [labels.new_zeros(())]
    loss: Tensor = _Loss.apply(hidden, weight, labels, 1, chunk_tokens, block_rows, right)  # type: ignore[no-untyped-call]
    return loss, torch.stack(right).sum()


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Weight,
        labels: Tensor,
        count: int,
        chunk_tokens: int,
        block_rows: int,
        right: list[Tensor],
    ) -> Tensor:
        """`right` gets of each chunk how many labels are the likeliest word, where there is something in it already."""
        keep = ctx.needs_input_grad[0]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if keep else None
        # The same blocks of words wherever W lies and whatever its dtype: the sums are then the same bit for bit. A
        # float W in the right dtype and in memory is used as it is; anything else is copied block by block.
        fits = isinstance(weight, FloatWeight) and weight.weight.dtype == hidden.dtype and not weight.mapped
        whole = weight.weight if isinstance(weight, FloatWeight) and fits else None
        words = weight.shape[0]
        blocks = worth_running(row_blocks(words, block_rows), hidden)
        scratch = Scratch()
        bias, shaping = (weight.bias, weight.shaping) if isinstance(weight, OutputHead) else (None, Shaping())

        def rows_of(rows: slice) -> Tensor:
            if whole is not None:
                return whole[rows]
            shape = (rows.stop - rows.start, hidden.shape[1])
            block = weight.copy_rows(rows, scratch.take("block", shape, hidden.dtype, hidden.device))
            weight.release()
            return block

        chunks = (slice(start, start + chunk_tokens) for start in range(0, hidden.shape[0], chunk_tokens))
        for chunk in worth_running(chunks, hidden):
            x, label = hidden[chunk], labels[chunk]
            logits = scratch.take("logits", (x.shape[0], words), hidden.dtype, hidden.device)
            for rows in blocks:
                logits[:, rows].addmm_(x, rows_of(rows).T, beta=0)
            counts = label != IGNORE_INDEX
            place = label.clamp(min=0)[:, None]  # (t, 1); an ignored label looks up word 0 and is then masked
            if bias is not None:
                logits += bias
            # The same tensor in float32, if the model does nothing with it.
            probability = shaping.of(logits.float())
            slope = shaping.slope(probability) if gradient is not None else 1.0
            chosen = probability.gather(1, place).squeeze(1)
            largest = probability.amax(dim=1, keepdim=True)
            if right:
                right.append(((chosen == largest.squeeze(1)) & counts).sum())
            normaliser = probability.sub_(largest).exp_().sum(dim=1)
            total += ((normaliser.log() + largest.squeeze(1) - chosen) * counts).sum()
            if gradient is None:
                continue
            # d loss / d logits = (softmax - one at the label) / count
            share = counts.float() / count
            probability.mul_((share / normaliser)[:, None]).scatter_add_(1, place, -share[:, None])
            if shaping != Shaping():
                probability.mul_(slope)
            logits = probability.to(hidden.dtype)
            out = gradient[chunk]
            for rows in blocks:
                out.addmm_(logits[:, rows], rows_of(rows), beta=int(rows.start > 0))
        ctx.save_for_backward(gradient)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gloss: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        # In place: autograd counts the change, so a second backward pass fails loudly.
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(gloss), None, None, None, None, None, None
