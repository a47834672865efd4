# SPDX-License-Identifier: Apache-2.0
"""The client half of PEFT's adapters, whatever their type: the adapter's tensors train, whole, on the frozen base.

What they hold before the first round is drawn from the run's seed, as the schema says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_client.worker.adapters.attaching import Attached, attach
from edge_client.worker.adapters.layers import lengths_of
from edge_client.worker.methods.interface import Kept
from edge_client.worker.methods.named import NamedTensors
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.weights import row_blocks
from fedcore.errors import ModelError
from fedcore.round.training import AdapterTraining, Training
from fedcore.weights.initial import initial_adapter, row_lengths
from fedcore.weights.schema import AdapterTensor

__all__ = ["Adapters"]

_BLOCK_ROWS = 256


class Adapters(NamedTensors):
    """An adapter's tensors.

    Args:
        model: Built; the adapter takes its place in it.
        training: Of the plan.
        artefact: None; the method asks for none.

    Raises:
        ModelError: PEFT is not installed, or makes another adapter than the run's schema says.
    """

    def __init__(self, model: BuiltModel, training: AdapterTraining, artefact: None = None) -> None:
        del artefact
        self._seed, self._attached = training.run_seed, attach(model, training.peft)
        self._specs = {spec.name: spec for spec in model.adapter}
        _require_same(self._attached, self._specs, training.peft.name)
        tensors = self._attached.tensors
        if (device := next(iter(model.layers.values())).base.device).type != "cpu":
            for tensor in (*tensors.values(), *(known.base for _, known in self._known_lengths())):
                tensor.data = tensor.data.to(device)
        super().__init__(model, {name: one for name, one in tensors.items() if isinstance(one, nn.Parameter)})

    def outline(self, training: Training) -> Kept:
        """Beside what trains, what does not."""
        tensors, kept = self._attached.tensors, self.kept_beside()
        frozen = sum(tensor.numel() for name, tensor in tensors.items() if name not in self._parameters)
        lengths = sum(known.base.numel() for _, known in self._known_lengths())
        return replace(kept, state_bytes=kept.state_bytes + 4 * (frozen + lengths))

    def first_values(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """As the schema says; what does not train gets its numbers once, here."""
        for name, known in self._known_lengths():
            known.base.copy_(torch.from_numpy(_lengths(self._model.layers[name])))
        for name, tensor in self._attached.tensors.items():
            spec = self._specs[name]
            layer = spec.lengths_of
            value = _lengths(self._model.layers[layer]) if layer else initial_adapter(spec, self._seed)
            if name in self._parameters:
                yield name, value
            else:
                tensor.copy_(torch.from_numpy(value).to(tensor.device))

    def _known_lengths(self) -> Iterator[tuple[str, Any]]:
        """What DoRA's layers know of the rows of W, by layer."""
        for name, layer in self._attached.layers.items():
            if (known := lengths_of(layer)) is not None:
                yield name, known

    def measure(self, step: int, run: Callable[[], float]) -> float:
        """One pass forward and backward.

        Raises:
            ModelError: It leaves no gradient: the model does not compute with the adapter.
        """
        loss = run()
        if all(parameter.grad is None for parameter in self._parameters.values()):
            words = f"{type(self._model.module).__name__} does not compute with this adapter"
            raise ModelError(words, place="method.peft", remedy="use another type")
        return loss


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
