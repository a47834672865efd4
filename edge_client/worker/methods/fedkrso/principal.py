# SPDX-License-Identifier: Apache-2.0
"""Informed rows from text: the base model reads it once, and what goes into each target layer is summed up, and its
second moment.

No label is looked at, and nothing is padded: texts of one length go through together. Sums of products are float32
within a batch and float64 over batches. A layer's matrix has n x n numbers; as many layers as fit a gigabyte are
measured in one pass. Layers that read the same tensor (a block's query, key and value) have one matrix, and the same
rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from edge_client.worker.data.tasks import Encoded, worker_task
from edge_client.worker.methods.artefact import ArtefactSources
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.loading import build
from fedcore.config.sections import TaskSection
from fedcore.round.training import SubspaceTraining
from fedcore.subspaces.informed import LayerRows, principal_rows, rounded_rows, write_informed
from fedcore.weights.schema import LayerSpec

__all__ = ["informed_layers", "make_informed"]

_BATCH = 16
_MOMENT_BYTES = 2**30


@dataclass(frozen=True)
class _Sums:
    """Over all tokens that went into a layer: of x x^T (n, n) and of x (n,), float64."""

    moment: Tensor
    mean: Tensor

    @staticmethod
    def zero(columns: int) -> _Sums:
        return _Sums(torch.zeros(columns, columns, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64))


def make_informed(path: Path, sources: ArtefactSources) -> None:
    """Measure and write the informed rows of a run.

    Args:
        path: Of the file.
        sources: Base, task and texts; their training says of how many subspaces, of what rank.

    Raises:
        ModelError: A layer got no input.
    """
    training, base = sources.training, sources.base
    assert isinstance(training, SubspaceTraining)
    # A new head's first values do not matter: it is not among the target layers.
    model = build(base, sources.task, 0, sources.torch_device, torch.float32)
    subspaces, rank, pool = training.informed_subspaces, training.rank, len(training.seeds)
    layers = informed_layers(
        model, base.schema.layers, sources.texts, sources.task, sources.torch_device, subspaces, rank, pool
    )
    write_informed(path, subspaces, rank, layers)


def informed_layers(
    model: BuiltModel,
    layers: Sequence[LayerSpec],
    encoded: Sequence[Encoded],
    task: TaskSection,
    torch_device: torch.device,
    subspaces: int,
    rank: int,
    pool: int,
) -> Iterator[tuple[str, LayerRows]]:
    """The informed rows of each layer, in order.

    Args:
        model: Built on the run's base; nothing learned.
        layers: The target layers.
        encoded: Texts; their targets do not matter.
        task: What the model does.
        torch_device: Where it is.
        subspaces: How many of the pool's are informed.
        rank: r.
        pool: K.

    Raises:
        ModelError: A layer got no input.
    """
    last: tuple[_Sums, LayerRows] | None = None
    for group in _groups(layers):
        for name, sums in _measured(model, group, encoded, task, torch_device).items():
            if last is None or not torch.equal(last[0].moment, sums.moment):
                found = principal_rows(sums.moment.numpy(), sums.mean.numpy(), subspaces, rank, name)
                last = sums, rounded_rows(found, pool * rank)
            yield name, last[1]


def _groups(layers: Sequence[LayerSpec]) -> Iterator[list[LayerSpec]]:
    """Layers whose matrices fit into memory together."""
    group: list[LayerSpec] = []
    held = 0
    for layer in layers:
        size = 8 * layer.columns**2
        if group and held + size > _MOMENT_BYTES:
            yield group
            group, held = [], 0
        group.append(layer)
        held += size
    if group:
        yield group


def _measured(
    model: BuiltModel,
    layers: Sequence[LayerSpec],
    encoded: Sequence[Encoded],
    task: TaskSection,
    torch_device: torch.device,
) -> dict[str, _Sums]:
    """By layer."""
    at_work, sums = worker_task(task), {layer.name: _Sums.zero(layer.columns) for layer in layers}
    products = _Products()
    with ExitStack() as stack, torch.inference_mode():
        for name, total in sums.items():
            stack.enter_context(_listening(model.layers[name], total, products))
        model.module.eval()
        for batch in _of_one_length(encoded):
            # Nothing is padded, so any number will do.
            at_work.forward(model, batch, 0, torch_device)
        model.module.train()
    return sums


class _Products:
    """Of the tensor that a layer read last, which the next one may read too."""

    def __init__(self) -> None:
        # The tensor itself is held, so that no other takes its place in memory.
        self._of: Tensor | None = None
        self._last = (torch.empty(0), torch.empty(0))

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Over all tokens: of x x^T (n, n), and of x (n,)."""
        if x is not self._of:
            flat = x.reshape(-1, x.shape[-1]).float()
            self._of, self._last = x, ((flat.T @ flat).cpu(), flat.sum(dim=0).cpu())
        return self._last


@contextmanager
def _listening(layer: SubspaceLinear, sums: _Sums, products: _Products) -> Iterator[None]:
    def add(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        moment, mean = products.of(inputs[0])
        sums.moment.add_(moment)
        sums.mean.add_(mean)

    handle = layer.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _of_one_length(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    ordered = sorted(encoded, key=lambda one: len(one.ids))
    for _, some in groupby(ordered, key=lambda one: len(one.ids)):
        same = list(some)
        for start in range(0, len(same), _BATCH):
            yield same[start : start + _BATCH]
