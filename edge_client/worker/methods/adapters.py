# SPDX-License-Identifier: Apache-2.0
"""The client half of PEFT's adapters, whatever their type: the adapter's tensors train, whole, on the frozen base.

What they hold before the first round is drawn from the run's seed, as the schema says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.worker.adapters.attaching import Attached, attach
from edge_client.worker.adapters.layers import lengths_of
from edge_client.worker.methods.interface import Kept, adam_state, restore_adam
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.weights import row_blocks
from fedcore.errors import ModelError
from fedcore.model.state import PublishedState
from fedcore.round.plan import Plan
from fedcore.round.training import AdapterTraining, Training
from fedcore.weights.initial import initial_adapter, row_lengths
from fedcore.weights.schema import AdapterTensor

__all__ = ["Adapters"]

_BLOCK_ROWS = 256


class Adapters:
    """An adapter's tensors, with one Adam for the round.

    Args:
        model: Built; the adapter takes its place in it.
        training: Of the plan.
        artefact: None; the method asks for none.

    Raises:
        ModelError: PEFT is not installed, or makes another adapter than the run's schema says.
    """

    supersedes: ClassVar[bool] = True
    rank: int = 0
    subspaces: tuple[int, ...] = ()
    local: Mapping[str, nn.Parameter] = {}

    def __init__(self, model: BuiltModel, training: AdapterTraining, artefact: None = None) -> None:
        del artefact
        self._model, self._seed = model, training.run_seed
        self._attached = attach(model, training.peft)
        self._specs = {spec.name: spec for spec in model.adapter}
        _require_same(self._attached, self._specs, training.peft.name)
        if (device := next(iter(model.layers.values())).base.device).type != "cpu":
            for tensor in self._attached.tensors.values():
                tensor.data = tensor.data.to(device)
        self._trained = {name: tensor for name, tensor in self._tensors() if self._specs[name].trained}
        self._start: dict[str, Tensor] = {}
        self._drawn: dict[str, Tensor] = {}
        self._adam: torch.optim.Adam | None = None

    def _tensors(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, tensor in self._attached.tensors.items():
            assert isinstance(tensor, nn.Parameter) or not self._specs[name].trained
            yield name, tensor  # type: ignore[misc]

    def outline(self, training: Training) -> Kept:
        """What trains with gradients, moments and what the round began with; what does not train; the state as it
        came."""
        tensors = self._attached.tensors
        numbers = sum(tensor.numel() for tensor in self._trained.values())
        frozen = sum(tensor.numel() for name, tensor in tensors.items() if name not in self._trained)
        lengths = sum(layer.out_features for layer in self._attached.layers.values() if lengths_of(layer) is not None)
        own = self._model.layers.values()
        return Kept(
            state_bytes=2 * numbers + 4 * (frozen + lengths),
            trained_bytes=(4 + 4 + 4) * numbers,
            moments_bytes=(4 + 4) * numbers,
            block_bytes=max(layer.compute_dtype.itemsize for layer in own),
        )

    @torch.no_grad()
    def install(self, state: PublishedState) -> None:
        """First values plus published changes, one float32 addition a number."""
        self._adam = None
        if not self._drawn:
            self._draw()
        for name, parameter in self._trained.items():
            change = torch.from_numpy(state.entries[name].values()).reshape(parameter.shape)
            start = self._drawn[name] + change
            parameter.copy_(start.to(parameter.device))
            parameter.grad = None
            self._start[name] = start

    def _draw(self) -> None:
        """First values, and what never changes."""
        for name, layer in self._attached.layers.items():
            if (lengths := lengths_of(layer)) is not None:
                lengths.base.copy_(torch.from_numpy(_lengths(self._model.layers[name])))
        for name, tensor in self._attached.tensors.items():
            spec = self._specs[name]
            if spec.lengths_of:
                value = _lengths(self._model.layers[spec.lengths_of])
            else:
                value = initial_adapter(spec, self._seed)
            if spec.trained:
                self._drawn[name] = torch.from_numpy(value)
            else:
                tensor.copy_(torch.from_numpy(value).to(tensor.device))

    def open(self, plan: Plan, node: str, rank: int) -> None:
        """One Adam for the round."""
        self._adam = torch.optim.Adam(self._trained.values(), lr=plan.training.learning_rate)

    def begin(self, interval: int) -> torch.optim.Adam:
        """The same Adam goes on."""
        assert self._adam is not None
        return self._adam

    def measure(self, step: int, run: Callable[[], float]) -> float:
        """One pass forward and backward.

        Raises:
            ModelError: It leaves no gradient: the model does not compute with the adapter.
        """
        loss = run()
        if all(parameter.grad is None for parameter in self._trained.values()):
            name = type(self._model.module).__name__
            raise ModelError(
                f"{name} does not compute with this adapter", place="method.peft", remedy="use another type"
            )
        return loss

    def finish(self, interval: int) -> None:
        """Nothing to do."""

    def kept(self, interval: int) -> Iterator[tuple[str, Tensor]]:
        """Values and moments."""
        assert self._adam is not None
        for name, parameter in self._trained.items():
            yield from adam_state(name, parameter, self._adam)

    def restore(self, interval: int, rank: int, read: Callable[[str], Tensor]) -> None:
        """Values and moments."""
        assert self._adam is not None
        for name, parameter in self._trained.items():
            restore_adam(name, parameter, self._adam, read)

    @torch.no_grad()
    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Values less what the round began with, as matrices."""
        for name, parameter in self._trained.items():
            yield name, (parameter.cpu() - self._start[name]).reshape(self._specs[name].matrix).numpy()


def _require_same(attached: Attached, specs: Mapping[str, AdapterTensor], kind: str) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in attached.tensors.items()}
    wanted = {name: spec.shape for name, spec in specs.items()}
    if found != wanted:
        other = min({name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)})
        raise ModelError(
            f"{other} of {kind} is {found.get(other, 'missing')} here, {wanted.get(other, 'missing')} in the run",
            place="method.peft",
            remedy="install the coordinator's version of the package peft, or make its model.schema_file anew",
        )


def _lengths(layer: SubspaceLinear) -> NDArray[np.float32]:
    """Of the rows of a layer's base."""
    out = np.empty(layer.out_features, np.float32)
    for rows in row_blocks(layer.out_features, _BLOCK_ROWS):
        block = torch.empty(rows.stop - rows.start, layer.in_features)
        layer.base.copy_rows(rows, block)
        out[rows] = row_lengths(block.numpy())
    layer.base.release()
    return out
