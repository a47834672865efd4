# SPDX-License-Identifier: Apache-2.0
"""FedKSeed's client half (arXiv 2312.06353): forward passes only, one seeded direction a step.

A step measures the loss at W + eps z and at W - eps z, and moves W along z by the learning rate times the slope between
them. No activation is kept and no gradient of a target layer exists. What a weight needs beside the base's int8 is the
32-bit integer of what was learned (`fedcore.subspaces.directions`); the moved weights are made in blocks while a
product needs them. Tensors trained whole (a head behind the trunk) take their gradient from the same two passes, which
keep nothing but what lies behind the first such tensor.

All moves are integers, so a round that is killed and goes on, and a model that drops what a round learned, end with the
same bits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.worker.methods.interface import Kept
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.weights import FloatWeight, Int8Weight, ShiftedWeight
from fedcore.errors import WorkerError
from fedcore.model.state import PublishedState
from fedcore.round.plan import Plan
from fedcore.round.training import AMPLITUDES, COEFFICIENTS, USES, ScalarTraining, Training
from fedcore.subspaces.directions import (
    BLOCK_ROWS,
    UNIT_BITS,
    add_directions,
    as_units,
    direction,
    seed_probabilities,
    spread_fits,
    units_of,
)
from fedcore.subspaces.schedule import step_directions
from fedcore.weights.schema import LayerSpec

__all__ = ["FedKSeed"]

# As the authors' code has it; beyond, a slope counts no more for drawing.
_LARGEST_SLOPE = 1000.0
_USE = 2.0**-8


class FedKSeed:
    """The target layers with a base that moves along directions; what trains is one coefficient at a time."""

    supersedes: ClassVar[bool] = True
    rank: int = 0
    subspaces: tuple[int, ...] = ()
    local: Mapping[str, nn.Parameter] = {}

    def __init__(self, model: BuiltModel, training: ScalarTraining, artefact: None = None) -> None:
        del artefact
        self._training, self._layers, self._tensors = training, model.layers, model.tensors
        self._specs = [LayerSpec(name, layer.out_features, layer.in_features) for name, layer in self._layers.items()]
        self._seed = training.seeds[0]
        # What the layers compute with, in whole units: published, and what this round added.
        self._published = self._held = np.zeros(training.num_directions, np.int64)
        self._probabilities = np.ones(training.num_directions)
        self._coefficient = nn.Parameter(torch.zeros(1))
        self._drawn: tuple[int, ...] = ()
        self._moves = self._slopes = np.zeros(0, np.float32)
        self._pending: int | None = None

    def outline(self, training: Training) -> Kept:
        """Nothing that takes a gradient but whole tensors; four bytes a weight for what was learned."""
        layers = self._layers.values()
        width = max(layer.compute_dtype.itemsize for layer in layers)
        return Kept(
            state_bytes=sum(4 * layer.out_features * layer.in_features for layer in layers),
            # A block of the sum, of the change or the direction as floats, and of the direction; in 16-bit types the
            # sum as floats too.
            block_bytes=width + 4 + 1 + (4 if width < 4 else 0),
        )

    def install(self, state: PublishedState) -> None:
        """Move every weight from where it stands: one pass for each coefficient that differs."""
        unit = 2.0 ** (self._training.unit_exponent - UNIT_BITS)
        for layer in self._layers.values():
            if isinstance(layer.base, Int8Weight | FloatWeight):
                layer.base = ShiftedWeight(layer.base, unit, layer.scratch)
        self._published = units_of(state.entries[COEFFICIENTS], COEFFICIENTS)
        self._move_to(self._published)
        if self._training.biased:
            amplitudes, uses = (state.entries[name].values()[0].astype(np.float64) for name in (AMPLITUDES, USES))
            self._probabilities = seed_probabilities(amplitudes, uses)
        self._pending = None

    def open(self, plan: Plan, node: str, rank: int) -> None:
        """Draw the direction of each step."""
        training = plan.training
        assert isinstance(training, ScalarTraining)
        steps = training.steps
        self._drawn = step_directions(training.run_seed, plan.round, node, steps, self._probabilities.tolist())
        self._moves, self._slopes = np.zeros(steps, np.float32), np.zeros(steps, np.float32)

    def begin(self, interval: int) -> torch.optim.SGD:
        """SGD on the coefficient of a step's direction, whose gradient is the slope."""
        return torch.optim.SGD([self._coefficient], lr=self._training.learning_rate)

    def measure(self, step: int, run: Callable[[], float]) -> float:
        """The slope along the step's direction, and the mean of both passes' gradients of whole tensors."""
        self._settle()
        length, index = self._training.perturbation, self._drawn[step]
        above = self._pass(length, index, run)
        # Kept apart: a pass that runs out of memory drops what it finds, and is repeated.
        first = {name: tensor.grad for name, tensor in self._tensors.items()}
        self._drop_gradients()
        below = self._pass(-length, index, run)
        for name, tensor in self._tensors.items():
            gradient = first[name]
            if gradient is not None and tensor.grad is not None:
                tensor.grad.add_(gradient).mul_(0.5)
        slope = (above - below) / (2 * length)
        self._coefficient.grad = torch.full((1,), slope)
        self._slopes[step], self._pending = abs(slope), step
        return (above + below) / 2

    def finish(self, interval: int) -> None:
        """The last step's move."""
        self._settle()

    def kept(self, interval: int) -> Iterator[tuple[str, Tensor]]:
        """The round's moves so far, from which all else follows."""
        yield "moves", torch.from_numpy(self._moves)
        yield "slopes", torch.from_numpy(self._slopes)

    def restore(self, interval: int, rank: int, read: Callable[[str], Tensor]) -> None:
        """Make the same moves."""
        self._moves, self._slopes = read("moves").numpy().copy(), read("slopes").numpy().copy()
        self._move_to(self._published + self._learned())

    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The round's table, and what drawing goes by."""
        yield COEFFICIENTS, _row(np.ldexp(self._learned().astype(np.float64), -UNIT_BITS))
        if self._training.biased:
            clipped = np.minimum(self._slopes.astype(np.float64), _LARGEST_SLOPE) * self._training.unit_learning_rate
            yield AMPLITUDES, _row(self._by_direction(np.ldexp(clipped, -self._training.unit_exponent)))
            yield USES, _row(self._by_direction(np.full(len(self._drawn), _USE)))

    def _pass(self, length: float, index: int, run: Callable[[], float]) -> float:
        """The loss with every weight moved along a direction."""
        for spec in self._specs:
            self._base(spec).step = length, functools.partial(direction, self._seed, index, spec)
        try:
            return run()
        finally:
            for spec in self._specs:
                self._base(spec).step = None

    def _settle(self) -> None:
        """Have the layers make the move that the optimiser made."""
        if self._pending is None:
            return
        self._moves[self._pending] = self._coefficient.item()
        with torch.no_grad():
            self._coefficient.zero_()
        self._pending = None
        self._move_to(self._published + self._learned())

    def _learned(self) -> NDArray[np.int64]:
        """The round's moves by direction, in whole units; each is rounded by itself."""
        units = as_units(np.ldexp(self._moves.astype(np.float64), -self._training.unit_exponent))
        table = np.zeros_like(self._published)
        np.add.at(table, list(self._drawn), units)
        return table

    def _by_direction(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(self._drawn, values, minlength=len(self._published)), np.float64)

    def _move_to(self, table: NDArray[np.int64]) -> None:
        difference = table - self._held
        if not difference.any():
            return
        if not spread_fits(table):
            raise WorkerError("the steps are too large to be summed exactly", remedy="lower method.learning_rate")
        for spec in self._specs:
            for start in range(0, spec.rows, BLOCK_ROWS):
                rows = slice(start, min(start + BLOCK_ROWS, spec.rows))
                add = functools.partial(add_directions, units=difference, seed=self._seed, layer=spec, block=rows)
                self._base(spec).add(rows, add)
        self._held = table

    def _base(self, spec: LayerSpec) -> ShiftedWeight:
        base = self._layers[spec.name].base
        assert isinstance(base, ShiftedWeight)
        return base

    def _drop_gradients(self) -> None:
        for tensor in self._tensors.values():
            tensor.grad = None


def _row(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32)[None]
