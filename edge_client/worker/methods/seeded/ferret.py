# SPDX-License-Identifier: Apache-2.0
"""Ferret's client half (arXiv 2409.06277): full fine-tuning in the round, then K inner products of each layer's change.

A device needs the memory of full fine-tuning; only the update is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.worker.methods.interface import Kept
from edge_client.worker.methods.whole.fedavg import FedAvg
from edge_client.worker.model.built import BuiltModel
from fedcore.model.state import PublishedState
from fedcore.round.plan import Plan
from fedcore.round.training import SketchTraining, Training
from fedcore.subspaces.directions import BLOCK_ROWS, change_of, project
from fedcore.subspaces.schedule import subset
from fedcore.weights.schema import LayerSpec

__all__ = ["Ferret"]

_LEAST_DIRECTIONS = 2


class Ferret(FedAvg):
    """As in federated averaging, but for what of a change is sent, and how what was learned is had back."""

    def __init__(self, model: BuiltModel, training: SketchTraining, artefact: None = None) -> None:
        super().__init__(model, training, artefact)
        self._training = training
        self._round, self._node = 0, ""

    def _state_shapes(self, training: Training) -> Iterator[tuple[int, int]]:
        assert isinstance(training, SketchTraining)
        return ((1, training.num_directions) for _ in self._bases)

    def outline(self, training: Training) -> Kept:
        """As in federated averaging; plain SGD has no moments."""
        assert isinstance(training, SketchTraining)
        kept = super().outline(training)
        return replace(kept, moments_bytes=0) if training.optimiser == "sgd" else kept

    def open(self, plan: Plan, node: str, rank: int) -> None:
        """One optimiser for the round."""
        super().open(plan, node, rank)
        assert isinstance(plan.training, SketchTraining)
        if plan.training.optimiser == "sgd":
            self._adam = torch.optim.SGD(self._weights.values(), lr=plan.training.learning_rate)
        self._training, self._round, self._node = plan.training, plan.round, node

    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The coefficients from which a layer's change is rebuilt: right on average, whatever directions are used."""
        training = self._training
        largest = max((float(np.linalg.norm(change)) for _, change in super().changes()), default=0.0)
        for name, change in super().changes():
            spec = LayerSpec(name, *change.shape)
            used = self._used(name, float(np.linalg.norm(change)), largest)
            scale = training.server_learning_rate / len(used)
            coefficients = np.zeros((1, training.num_directions), np.float32)
            coefficients[0, list(used)] = project(change, training.seeds[0], spec, used) * scale
            yield training.coefficients(spec), coefficients

    def _used(self, name: str, norm: float, largest: float) -> tuple[int, ...]:
        """Which directions: all, or as many as the layer's share of the largest change says."""
        training, count = self._training, self._training.num_directions
        if training.allocation == "norm" and norm < largest:
            size = min(count, max(int(count * norm / largest), _LEAST_DIRECTIONS))
            return subset(training.run_seed, self._round, self._node, name, size, count)
        return tuple(range(count))

    def _add_learned(self, state: PublishedState, name: str, weight: Tensor) -> None:
        spec = LayerSpec(name, *weight.shape)
        part = state.entries[self._training.coefficients(spec)]
        if not part.q.any():
            return
        change = change_of(part, state.seeds[0], spec, self._training.unit_exponent)
        for start in range(0, spec.rows, BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, spec.rows))
            weight[rows] += torch.from_numpy(change(rows)).to(weight.device)
