# SPDX-License-Identifier: Apache-2.0
"""Padding is left out of the large products: the same function, fewer rows, and never more rows than a memory plan
foresees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plans import subspaces

from edge_client.worker.data.tasks import Encoded, summed_loss
from edge_client.worker.methods.fedkrso.half import FedKRSO
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.loading import build, describe
from edge_client.worker.model.padding import Padding
from fedcore.config.sections import TaskSection
from fedcore.model.base import Base
from fedcore.model.state import PublishedState
from fedcore.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")
LABELS = TaskSection(kind="text-classification", labels=("a", "b", "c"), max_length=32)
CAUSAL = TaskSection(kind="causal-lm", max_length=32)
TEXTS = [Encoded(tuple(range(5, 7 + 3 * i)), None, i % 3) for i in range(5)]


@pytest.mark.parametrize("task", [LABELS, CAUSAL], ids=["labels", "causal"])
@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_loss_and_gradients_do_not_depend_on_it(
    task: TaskSection, compute_dtype: torch.dtype, shared_folder: Path, tmp_path: Path
) -> None:
    folder = shared_folder / "models" / "stories260K"
    schema = describe(Checkpoint(folder), task)
    model = build(Base(Checkpoint(folder), schema, "int8", tmp_path), task, 0, CPU, compute_dtype)
    training = subspaces((5, 6), 4)
    FedKRSO(model, training).install(PublishedState.zero(training, schema))
    texts = TEXTS if task is LABELS else [Encoded(e.ids, None, None) for e in TEXTS]
    found: list[tuple[float, list[torch.Tensor], list[int]]] = []
    for room_tokens in (0, 10_000):
        model.padding.room_tokens = room_tokens
        for layer in model.layers.values():
            layer.select(0, 4)
        rows = _rows_seen(model)
        loss = summed_loss(model, texts, task, model.pad_id, CPU)
        loss.backward()
        found.append((float(loss.detach()), [layer.factor.grad.clone() for layer in model.layers.values()], rows))
    (whole_loss, gradients, rows), (other_loss, others, fewer) = found
    tolerance = 1e-5 if compute_dtype == torch.float32 else 2e-2
    assert other_loss == pytest.approx(whole_loss, rel=tolerance)
    for one, other in zip(gradients, others, strict=True):
        assert torch.linalg.vector_norm(one - other) <= tolerance * torch.linalg.vector_norm(one) + 1e-7
    real, padded = sum(len(e.ids) for e in TEXTS), 5 * max(len(e.ids) for e in TEXTS)
    assert set(rows) == {padded} and set(fewer) == {real}


def _rows_seen(model: BuiltModel) -> list[int]:
    """How many rows each target layer's product has, from now on."""
    rows: list[int] = []
    for layer in model.layers.values():

        def product(x: Any, out: Any, beta: int, layer: SubspaceLinear = layer) -> Any:
            rows.append(x.shape[0])
            return SubspaceLinear.product(layer, x, out, beta)

        layer.product = product  # type: ignore[method-assign]
    return rows


@pytest.mark.parametrize(
    ("room_tokens", "mask", "rows", "expected"),
    [
        (9, [[1, 1, 1], [1, 0, 0]], 6, None),  # 6 + 4 rows do not fit
        (10, [[1, 1, 1], [1, 0, 0]], 6, [0, 1, 2, 3]),
        (10, [[1, 1, 1], [1, 0, 0]], 2, None),  # one row for each text: a pooler
        (100, [[1, 1, 1], [1, 1, 1]], 6, None),  # nothing to leave out
        (0, [[1, 1, 1], [1, 0, 0]], 6, None),
    ],
)
def test_rows_of_both_kinds_stay_within_the_plan(
    room_tokens: int, mask: list[list[int]], rows: int, expected: list[int] | None
) -> None:
    padding = Padding()
    padding.room_tokens = room_tokens
    padding.see(torch.tensor(mask))
    real = padding.real(torch.zeros(rows, 4))
    assert (real.tolist() if real is not None else None) == expected


def test_rows_of_padding_are_zero() -> None:
    padding = Padding()
    padding.room_tokens = 5
    padding.see(torch.tensor([[1, 0, 1]]))
    computed = padding.left_out(torch.tensor([[1.0, 2.0], [7.0, 7.0], [3.0, 4.0]]), lambda x: x + 0)
    assert computed.tolist() == [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]
