# SPDX-License-Identifier: Apache-2.0
"""Methods that learn, or send, coefficients of seeded full-rank directions."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

from fedcore.round.training.base import (
    AMPLITUDES,
    COEFFICIENTS,
    MAX_DIRECTIONS,
    USES,
    LearningRate,
    Shapes,
    Training,
    numbers,
)
from fedcore.subspaces.schedule import pool_seeds
from fedcore.weights.schema import LayerSpec, ModelSchema

__all__ = ["DirectionTraining", "ScalarTraining", "SketchTraining"]

S = TypeVar("S", bound="ScalarTraining")


class DirectionTraining(Training, frozen=True, kw_only=True, tag_field="method"):
    """Methods whose state is coefficients of seeded full-rank directions (`fedcore.subspaces.directions`)."""

    learned: ClassVar[str] = "fedcore.model.learned:DirectionLearned"

    num_directions: Annotated[int, Meta(ge=1, le=MAX_DIRECTIONS)]
    """K."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each generation, which names its directions."""
        return pool_seeds(self.run_seed, self.generation, 1)

    @property
    def unit_exponent(self) -> int:
        """Coefficients are in units of two to this power."""
        return 0

    @abstractmethod
    def coefficients(self, layer: LayerSpec) -> str:
        """The entry with a layer's coefficients."""


class ScalarTraining(DirectionTraining, frozen=True, kw_only=True, tag_field="method", tag="fedkseed"):
    """FedKSeed: one coefficient of a direction through all layers, found with forward passes alone."""

    perturbation: Annotated[float, Meta(gt=0, le=1)]
    """How far every weight is moved either way to measure a slope, epsilon."""
    biased: bool
    """Whether directions are drawn by the slopes that were found along them (FedKSeed-Pro)."""
    first_learning_rate: LearningRate | None = None
    """Where rates fall from round to round that of the first one, which all rounds' units go by; None where they
    stay."""

    @property
    def unit_learning_rate(self) -> float:
        """The rate that units go by."""
        return self.learning_rate if self.first_learning_rate is None else self.first_learning_rate

    @property
    def unit_exponent(self) -> int:
        """Such that a step at this rate is 2**-14 to 2**-13 times its slope: slopes of 2**-15 count, and thousands of
        steps fit."""
        return math.frexp(self.unit_learning_rate)[1] + 13

    def at_rates(self: S, factor: float) -> S:
        """Units go with the rates."""
        first = None if self.first_learning_rate is None else self.first_learning_rate * factor
        return msgspec.structs.replace(super().at_rates(factor), first_learning_rate=first)

    def coefficients(self, layer: LayerSpec) -> str:
        """The same for all."""
        return COEFFICIENTS

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """One row for all layers, and what drawing goes by."""
        names = (COEFFICIENTS, AMPLITUDES, USES) if self.biased else (COEFFICIENTS,)
        return dict.fromkeys(names, (1, self.num_directions))

    def interval_numbers(self, schema: ModelSchema) -> int:
        """The round's steps and slopes, and the whole tensors with their moments."""
        return 2 * self.steps + 3 * numbers({tensor.name: tensor.matrix for tensor in schema.tensors})


class SketchTraining(DirectionTraining, frozen=True, kw_only=True, tag_field="method", tag="ferret"):
    """Ferret: whole changes are trained, and sent as coefficients of each layer."""

    allocation: Literal["norm", "equal"]
    """Whether a layer that changed less gets fewer of the directions."""
    server_learning_rate: LearningRate
    """Factor on what is rebuilt."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """Of the weights in the round; the head has Adam in any case."""

    def coefficients(self, layer: LayerSpec) -> str:
        """The state's entry with a layer's coefficients: one of its own for each layer."""
        return layer.name + COEFFICIENTS

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """A row for each layer."""
        return {self.coefficients(layer): (1, self.num_directions) for layer in schema.layers}

    def interval_numbers(self, schema: ModelSchema) -> int:
        """All weights and whole tensors, with two moments of each that has Adam."""
        whole = numbers({tensor.name: tensor.matrix for tensor in schema.tensors})
        each = 3 if self.optimiser == "adam" else 1
        return each * sum(layer.rows * layer.columns for layer in schema.layers) + 3 * whole
