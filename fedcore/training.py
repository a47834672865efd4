# SPDX-License-Identifier: Apache-2.0
"""A method's part of a plan, one struct for each way of training: how a participant trains, and what the entries of state and update are.

The state of every method is a set of named matrices, its entries; an update carries what training changed of them, and the outcome is the
exact weighted mean of the updates added to the state (`fedcore.state`). So a method says here which entries there are, of what shape,
and which of them one participant's update must have.

| struct | methods | entries |
|---|---|---|
| `SubspaceTraining` | FedKRSO | a layer's accumulators (m, K r); with averaged moments `<layer>/second` (m, K r) |
| `DenseTraining` | federated averaging | a layer's change (m, n) |
| `FactorTraining` | the LoRA family | `<layer>/A` (r, n) and `<layer>/B` (m, r) |
| `StackedTraining` | FLoRA | `<layer>/up` (m, c) and `<layer>/down` (c, n) |
| `ResidualTraining` | FedEx-LoRA | those of `FactorTraining`, and those of `StackedTraining` |
| `ScalarTraining` | FedKSeed | `/coefficients` (1, K), of all layers |
| `SketchTraining` | Ferret | `<layer>/coefficients` (1, K) |

Every method has one entry more for each tensor that is trained whole and shared.

Some entries are folded into the base before the next generation begins, and are zero then: a layer's accumulators (`<layer>`), and the two
factors of a product, which have as many columns or rows as an outcome brings (0 in `shapes`; a generation begins with none).
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fedcore.coding import Coding
from fedcore.errors import UpdateRefused
from fedcore.schedule import pool_seeds
from fedcore.schema import LayerSpec, ModelSchema, TensorSpec
from fedcore.types import Bits, Moments, Order, ProjectionName
from fedcore.wire.fields import OptionalSha256, Positive, RoundNumber

if TYPE_CHECKING:
    from fedcore.update import UpdateHeader

__all__ = [
    "AMPLITUDES",
    "COEFFICIENTS",
    "DOWN",
    "MAX_DIRECTIONS",
    "SECOND",
    "SECOND_BITS",
    "TENSOR_BITS",
    "UP",
    "USES",
    "AnyTraining",
    "DenseTraining",
    "DirectionTraining",
    "Expected",
    "FactorTraining",
    "ResidualTraining",
    "ScalarTraining",
    "SketchTraining",
    "StackedTraining",
    "SubspaceTraining",
    "Training",
    "folded_entries",
]

TENSOR_BITS: Final[Bits] = 16
UP: Final = "/up"
"""Ends the name of a left factor that is folded: `up @ down` is added to the layer's weight."""
DOWN: Final = "/down"
"""Ends the name of its right factor."""
COEFFICIENTS: Final = "/coefficients"
"""Ends the name of what a layer learned along seeded directions; alone it is the name of one table for all layers."""
AMPLITUDES: Final = "/amplitudes"
"""Sums of the absolute slopes that were found along directions."""
USES: Final = "/uses"
"""How often directions were used, in units of 2**-8 so that a round's sums stay within bounds."""
SECOND: Final = "/second"
"""Ends the name of the roots of second moments of a layer's factors, column by column those of its accumulators."""
SECOND_BITS: Final[Bits] = 8
"""Of a root in an update. At 8 bits it is off by 1 % (median); at 4 by 19 %, and a quarter of them are rounded to zero."""
MAX_DIRECTIONS: Final = 2**16
Rank = Annotated[int, Meta(ge=1, le=4096)]
Seed = Annotated[int, Meta(ge=0)]
LearningRate = Annotated[float, Meta(gt=0, le=1e6)]
Shapes = dict[str, tuple[int, int]]


def folded_entries(schema: ModelSchema) -> frozenset[str]:
    """Names of the entries that begin again at a fold, where a method has them; the others stay as they are.

    Second moments are added to nothing: they belong to the seeds that end with the generation.
    """
    return frozenset(layer.name + ending for layer in schema.layers for ending in ("", UP, DOWN, COEFFICIENTS, SECOND))


@dataclass(frozen=True)
class Expected:
    """What a record of an update must be: its shape, how its numbers travel, and the columns of the entry that it changes."""

    shape: tuple[int, int]
    coding: Coding
    columns: tuple[int, ...] | None = None
    """None for all."""


class Training(msgspec.Struct, frozen=True, kw_only=True, tag_field="method"):
    """What all methods say."""

    generation: RoundNumber
    """How often what was learned was folded into the base."""
    intervals: Positive
    """Intervals in the round; what a finished one learned is never trained again. T / J."""
    interval_steps: Positive
    """Optimiser steps in an interval, J."""
    batch_size: Positive
    """Examples in an optimiser step; the micro-batch is the node's own choice."""
    learning_rate: LearningRate
    tensor_learning_rate: LearningRate
    """For tensors trained whole (the task head)."""
    bits: Bits
    """Bits of an update's numbers, but for tensors trained whole."""
    share: Literal["examples", "uniform"]
    run_seed: Seed

    @property
    def method(self) -> str:
        """The struct's name in a plan."""
        return str(self.__struct_config__.tag)

    @property
    def seeds(self) -> tuple[int, ...]:
        """What the entries that are folded belong to, new in each generation: the pool, or one number. None in methods that never fold."""
        return ()

    @property
    def rank(self) -> int:
        """r, for methods that have one."""
        return 0

    @property
    def rows_from(self) -> str:
        """What rows of P come from, in methods with subspaces: a kind of `fedcore.projections`, or `informed/SUBSPACES/SHA256`."""
        return "signs"

    @property
    def informed(self) -> str:
        """SHA-256 of the run's informed rows (`fedcore.informed`); empty where there are none."""
        return ""

    @property
    def informed_subspaces(self) -> int:
        """How many of the pool's subspaces have informed rows: the first ones."""
        return 0

    @property
    def min_rank(self) -> int:
        """Smallest rank that a device with little memory may train instead."""
        return self.rank

    @property
    def steps(self) -> int:
        """Optimiser steps in the round, T."""
        return self.intervals * self.interval_steps

    def at(self, generation: int) -> Training:
        """The same training in another generation."""
        return msgspec.structs.replace(self, generation=generation)

    def shapes(self, schema: ModelSchema) -> Shapes:
        """(rows, columns) of every entry of the state; 0 where each outcome has a number of its own."""
        return self.layer_shapes(schema) | {tensor.name: tensor.matrix for tensor in self.shared_tensors(schema)}

    @property
    def shares_model(self) -> bool:
        """Whether all nodes have the same model; otherwise a part of it stays with each."""
        return True

    def shared_tensors(self, schema: ModelSchema) -> tuple[TensorSpec, ...]:
        """The tensors trained whole that all nodes share; the others stay with each node."""
        return schema.tensors

    def update_shapes(self, schema: ModelSchema) -> Shapes:
        """(rows, columns) of what an update may say at most, of layers and of tensors."""
        return self.update_layer_shapes(schema) | {tensor.name: tensor.matrix for tensor in self.shared_tensors(schema)}

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The same, of layers alone."""
        return self.layer_shapes(schema)

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Of the entries that belong to target layers."""
        raise NotImplementedError

    def expected(self, schema: ModelSchema, header: UpdateHeader) -> dict[str, Expected]:
        """The records that an update must have.

        Raises:
            UpdateRefused: The header does not say what the plan asks for.
        """
        self.check_header(header)
        tensors = {tensor.name: Expected(tensor.matrix, Coding("integers", TENSOR_BITS)) for tensor in self.shared_tensors(schema)}
        return self.expected_layers(schema, header) | tensors

    def expected_layers(self, schema: ModelSchema, header: UpdateHeader) -> dict[str, Expected]:
        """Of the entries that belong to target layers."""
        return {name: Expected(shape, self.coding(name)) for name, shape in self.update_layer_shapes(schema).items()}

    def coding(self, name: str) -> Coding:
        """How an update's entry travels, of those that belong to target layers."""
        return Coding("integers", self.bits)

    def averaged_by_column(self, schema: ModelSchema) -> frozenset[str]:
        """Entries whose mean is, column by column, over the participants that have the column; elsewhere who lacks it counts as zero."""
        return frozenset()

    def check_header(self, header: UpdateHeader) -> None:
        """Check what a header says of the method.

        Raises:
            UpdateRefused: Something else than the plan asks for.
        """
        if (header.rank, header.subspaces) != (self.rank, ()):
            found = f"rank {header.rank} in subspaces {reprlib.repr(header.subspaces)}"
            raise UpdateRefused(f"{found} where the plan has rank {self.rank} and no subspaces", place=header.node)

    def interval_numbers(self, schema: ModelSchema) -> int:
        """Numbers that a node keeps on disk for an interval: values, and two moments of each."""
        return 3 * sum(rows * columns for rows, columns in self.update_shapes(schema).values())

    def local_numbers(self, schema: ModelSchema) -> int:
        """Numbers that a node keeps for itself between rounds."""
        return 0


class SubspaceTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="fedkrso"):
    """FedKRSO (design 2): factors in random subspaces, one an interval."""

    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1, max_length=1024)]
    """The pool's K seeds."""
    rank: Rank
    min_rank: Rank
    order: Order
    moments: Moments = "reset"
    projection: ProjectionName = "signs"
    informed: OptionalSha256 = ""
    informed_subspaces: Annotated[int, Meta(ge=0, le=1024)] = 0

    @property
    def rows_from(self) -> str:
        """As the job says."""
        return f"{self.projection}/{self.informed_subspaces}/{self.informed}" if self.projection == "informed" else self.projection

    def at(self, generation: int) -> Training:
        """In another generation, with its seeds."""
        return msgspec.structs.replace(self, generation=generation, seeds=pool_seeds(self.run_seed, generation, len(self.seeds)))

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """K r columns for a layer."""
        return {name: (layer.rows, len(self.seeds) * self.rank) for layer in schema.layers for name in self._names(layer)}

    def expected_layers(self, schema: ModelSchema, header: UpdateHeader) -> dict[str, Expected]:
        """The columns of the seeds used, and of the rank trained."""
        columns = tuple(k * self.rank + row for k in header.subspaces for row in range(header.rank))
        return {
            name: Expected((layer.rows, len(columns)), self.coding(name), columns) for layer in schema.layers for name in self._names(layer)
        }

    def coding(self, name: str) -> Coding:
        """Second moments have bits of their own."""
        return Coding("integers", SECOND_BITS if name.endswith(SECOND) else self.bits)

    def averaged_by_column(self, schema: ModelSchema) -> frozenset[str]:
        """Second moments: who did not use a subspace knows nothing of it, where an unused accumulator is known to be zero."""
        return frozenset(layer.name + SECOND for layer in schema.layers) if self.moments == "averaged" else frozenset()

    def _names(self, layer: LayerSpec) -> tuple[str, ...]:
        return (layer.name, layer.name + SECOND) if self.moments == "averaged" else (layer.name,)

    def check_header(self, header: UpdateHeader) -> None:
        """Rank and subspaces within the plan's."""
        if not self.min_rank <= header.rank <= self.rank:
            raise UpdateRefused(f"rank {header.rank} is outside {self.min_rank} to {self.rank}", place=header.node)
        used = header.subspaces
        if len(set(used)) != len(used) or not used or not all(0 <= k < len(self.seeds) for k in used):
            raise UpdateRefused(f"subspaces {reprlib.repr(used)} are not distinct indices of {len(self.seeds)} seeds", place=header.node)

    def interval_numbers(self, schema: ModelSchema) -> int:
        """One accumulator of every layer with the moments that go on, and the whole tensors with theirs."""
        whole = sum(rows * columns for rows, columns in (tensor.matrix for tensor in schema.tensors))
        kept = 1 + {"reset": 0, "carried": 2, "averaged": 1}[self.moments]
        return kept * self.rank * sum(layer.rows for layer in schema.layers) + 3 * whole


DenseCodec = Literal["integers", "float32", "bfloat16", "top-k"]
"""How whole changes travel: `top-k` are integers too, only the largest."""


class DenseTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="fedavg"):
    """Federated averaging of full fine-tuning."""

    codec: DenseCodec = "integers"
    density: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of a layer's numbers that travel, for `top-k`."""

    def coding(self, name: str) -> Coding:
        """As the codec says; `bits` are of integers."""
        match self.codec:
            case "float32":
                return Coding("floats", 32)
            case "bfloat16":
                return Coding("floats", 16)
            case "top-k":
                return Coding("sparse", self.bits, self.density)
        return super().coding(name)

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Every number of a layer."""
        return {layer.name: (layer.rows, layer.columns) for layer in schema.layers}


Factor = Literal["A", "B"]
"""LoRA's down-projection A (r, n) and up-projection B (m, r): W + alpha / r B A."""


class FactorTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="lora"):
    """The LoRA family: which of the two factors train, and which are shared."""

    rank: Rank
    alpha: Annotated[float, Meta(gt=0, le=1e6)]
    trained: Annotated[tuple[Factor, ...], Meta(min_length=1, max_length=2)]
    """In this round."""
    shared: Annotated[tuple[Factor, ...], Meta(min_length=1, max_length=2)]
    """In the state. A factor that trains and is not shared stays on its node, with its task head."""

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The shared factors."""
        return self._factors(schema, self.shared)

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The shared factors that train."""
        return self._factors(schema, tuple(factor for factor in self.shared if factor in self.trained))

    @property
    def local(self) -> tuple[Factor, ...]:
        """The factors that stay on their node."""
        return tuple(factor for factor in self.trained if factor not in self.shared)

    @property
    def shares_model(self) -> bool:
        """Not where a factor stays on its node."""
        return not self.local

    def first_seed(self, seeds: tuple[int, ...]) -> int:
        """What the first values of A are drawn from, in a state of these seeds."""
        return self.run_seed

    def shared_tensors(self, schema: ModelSchema) -> tuple[TensorSpec, ...]:
        """None where a factor stays on its node: its head goes with it."""
        return schema.tensors if self.shares_model else ()

    def interval_numbers(self, schema: ModelSchema) -> int:
        """The factors that train and the whole tensors, with two moments of each."""
        return 3 * (_numbers(self._factors(schema, self.trained)) + _numbers({tensor.name: tensor.matrix for tensor in schema.tensors}))

    def local_numbers(self, schema: ModelSchema) -> int:
        """The factors that stay, and the head with them."""
        tensors = {} if self.shares_model else {tensor.name: tensor.matrix for tensor in schema.tensors}
        return _numbers(self._factors(schema, self.local) | tensors)

    def _factors(self, schema: ModelSchema, factors: tuple[Factor, ...]) -> Shapes:
        return {f"{layer.name}/{factor}": self._shape(factor, layer) for layer in schema.layers for factor in factors}

    def _shape(self, factor: Factor, layer: LayerSpec) -> tuple[int, int]:
        return (self.rank, layer.columns) if factor == "A" else (layer.rows, self.rank)


class StackedTraining(FactorTraining, frozen=True, kw_only=True, tag_field="method", tag="flora"):
    """FLoRA: what all participants learned is folded after each round, and factors begin again."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each generation: A is drawn from it."""
        return pool_seeds(self.run_seed, self.generation, 1)

    def first_seed(self, seeds: tuple[int, ...]) -> int:
        """New in each generation, so that the sum of all generations' products is not of rank r."""
        return seeds[0]

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The participants' factors, side by side."""
        return _stacked(schema)

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """One participant's factors."""
        return self._factors(schema, self.trained)


class ResidualTraining(FactorTraining, frozen=True, kw_only=True, tag_field="method", tag="fedex-lora"):
    """FedEx-LoRA: factors are averaged, and what the product of the means lacks to the mean of the products is folded after each round."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each generation: the residual belongs to it."""
        return pool_seeds(self.run_seed, self.generation, 1)

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The shared factors, and the residual's."""
        return self._factors(schema, self.shared) | _stacked(schema)


class DirectionTraining(Training, frozen=True, kw_only=True, tag_field="method"):
    """Methods whose state is coefficients of seeded full-rank directions (`fedcore.directions`)."""

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

    def coefficients(self, layer: LayerSpec) -> str:
        """The entry with a layer's coefficients."""
        raise NotImplementedError


class ScalarTraining(DirectionTraining, frozen=True, kw_only=True, tag_field="method", tag="fedkseed"):
    """FedKSeed: one coefficient of a direction through all layers, found with forward passes alone."""

    perturbation: Annotated[float, Meta(gt=0, le=1)]
    """How far every weight is moved either way to measure a slope, epsilon."""
    biased: bool
    """Whether directions are drawn by the slopes that were found along them (FedKSeed-Pro)."""

    @property
    def unit_exponent(self) -> int:
        """Such that a step is 2**-14 to 2**-13 times its slope: slopes of 2**-15 count, and thousands of steps fit."""
        return math.frexp(self.learning_rate)[1] + 13

    def coefficients(self, layer: LayerSpec) -> str:
        """The same for all."""
        return COEFFICIENTS

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """One row for all layers, and what drawing goes by."""
        names = (COEFFICIENTS, AMPLITUDES, USES) if self.biased else (COEFFICIENTS,)
        return dict.fromkeys(names, (1, self.num_directions))

    def interval_numbers(self, schema: ModelSchema) -> int:
        """The round's steps and slopes, and the whole tensors with their moments."""
        return 2 * self.steps + 3 * sum(rows * columns for rows, columns in (tensor.matrix for tensor in schema.tensors))


class SketchTraining(DirectionTraining, frozen=True, kw_only=True, tag_field="method", tag="ferret"):
    """Ferret: whole changes are trained, and sent as coefficients of each layer."""

    allocation: Literal["norm", "equal"]
    """Whether a layer that changed less gets fewer of the directions."""
    server_learning_rate: LearningRate
    """Factor on what is rebuilt."""

    def coefficients(self, layer: LayerSpec) -> str:
        """Its own."""
        return layer.name + COEFFICIENTS

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """A row for each layer."""
        return {self.coefficients(layer): (1, self.num_directions) for layer in schema.layers}

    def interval_numbers(self, schema: ModelSchema) -> int:
        """All weights and whole tensors, with two moments of each."""
        whole = _numbers({tensor.name: tensor.matrix for tensor in schema.tensors})
        return 3 * (sum(layer.rows * layer.columns for layer in schema.layers) + whole)


def _stacked(schema: ModelSchema) -> Shapes:
    return {f"{layer.name}{UP}": (layer.rows, 0) for layer in schema.layers} | {
        f"{layer.name}{DOWN}": (0, layer.columns) for layer in schema.layers
    }


def _numbers(shapes: Shapes) -> int:
    return sum(rows * columns for rows, columns in shapes.values())


AnyTraining = SubspaceTraining | DenseTraining | FactorTraining | StackedTraining | ResidualTraining | ScalarTraining | SketchTraining
