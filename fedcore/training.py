# SPDX-License-Identifier: Apache-2.0
"""A method's part of a plan, one struct for each way of training: how a participant trains, and what the entries of state and update are.

The state of every method is a set of named matrices, its entries; an update carries what training changed of them, and the outcome is the
exact weighted mean of the updates added to the state (`fedcore.state`). So a method says here which entries there are, of what shape,
and which of them one participant's update must have.

| struct | methods | entries |
|---|---|---|
| `SubspaceTraining` | FedKRSO | a layer's accumulators (m, K r) |
| `DenseTraining` | federated averaging | a layer's change (m, n) |
| `FactorTraining` | the LoRA family | `<layer>/A` (r, n) and `<layer>/B` (m, r) |

Every method has one entry more for each tensor that is trained whole.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fedcore.errors import UpdateRefused
from fedcore.schedule import pool_seeds
from fedcore.schema import ModelSchema
from fedcore.types import Bits, Order
from fedcore.wire.fields import Positive, RoundNumber

if TYPE_CHECKING:
    from fedcore.update import UpdateHeader

__all__ = ["TENSOR_BITS", "AnyTraining", "DenseTraining", "Expected", "FactorTraining", "SubspaceTraining", "Training"]

TENSOR_BITS: Final = 16
Rank = Annotated[int, Meta(ge=1, le=4096)]
Seed = Annotated[int, Meta(ge=0)]
LearningRate = Annotated[float, Meta(gt=0, le=1e6)]
Shapes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Expected:
    """What a record of an update must be: its shape, its bits a number, and the columns of the entry that it changes."""

    shape: tuple[int, int]
    bits: int
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
        """The pool, for methods with subspaces."""
        return ()

    @property
    def rank(self) -> int:
        """r, for methods that have one."""
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
        """(rows, columns) of every entry of the state."""
        return self.layer_shapes(schema) | {tensor.name: tensor.matrix for tensor in schema.tensors}

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Of the entries that belong to target layers."""
        raise NotImplementedError

    def expected(self, schema: ModelSchema, header: UpdateHeader) -> dict[str, Expected]:
        """The records that an update must have.

        Raises:
            UpdateRefused: The header does not say what the plan asks for.
        """
        self.check_header(header)
        tensors = {tensor.name: Expected(tensor.matrix, TENSOR_BITS) for tensor in schema.tensors}
        return self.expected_layers(schema, header) | tensors

    def expected_layers(self, schema: ModelSchema, header: UpdateHeader) -> dict[str, Expected]:
        """Of the entries that belong to target layers."""
        return {name: Expected(shape, self.bits) for name, shape in self.layer_shapes(schema).items()}

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
        return 3 * sum(rows * columns for rows, columns in self.shapes(schema).values())


class SubspaceTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="fedkrso"):
    """FedKRSO (design 2): factors in random subspaces, one an interval."""

    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1, max_length=1024)]
    """The pool's K seeds."""
    rank: Rank
    min_rank: Rank
    order: Order

    def at(self, generation: int) -> Training:
        """In another generation, with its seeds."""
        return msgspec.structs.replace(self, generation=generation, seeds=pool_seeds(self.run_seed, generation, len(self.seeds)))

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """K r columns for a layer."""
        return {layer.name: (layer.rows, len(self.seeds) * self.rank) for layer in schema.layers}

    def expected_layers(self, schema: ModelSchema, header: UpdateHeader) -> dict[str, Expected]:
        """The columns of the seeds used, and of the rank trained."""
        columns = tuple(k * self.rank + row for k in header.subspaces for row in range(header.rank))
        return {layer.name: Expected((layer.rows, len(columns)), self.bits, columns) for layer in schema.layers}

    def check_header(self, header: UpdateHeader) -> None:
        """Rank and subspaces within the plan's."""
        if not self.min_rank <= header.rank <= self.rank:
            raise UpdateRefused(f"rank {header.rank} is outside {self.min_rank} to {self.rank}", place=header.node)
        used = header.subspaces
        if len(set(used)) != len(used) or not used or not all(0 <= k < len(self.seeds) for k in used):
            raise UpdateRefused(f"subspaces {reprlib.repr(used)} are not distinct indices of {len(self.seeds)} seeds", place=header.node)

    def interval_numbers(self, schema: ModelSchema) -> int:
        """One accumulator of every layer, and the whole tensors with their moments."""
        whole = sum(rows * columns for rows, columns in (tensor.matrix for tensor in schema.tensors))
        return self.rank * sum(layer.rows for layer in schema.layers) + 3 * whole


class DenseTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="fedavg"):
    """Federated averaging of full fine-tuning."""

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
        return {
            f"{layer.name}/{factor}": self._shape(factor, layer.rows, layer.columns) for layer in schema.layers for factor in self.shared
        }

    def expected_layers(self, schema: ModelSchema, header: UpdateHeader) -> dict[str, Expected]:
        """The shared factors that train."""
        return {
            f"{layer.name}/{factor}": Expected(self._shape(factor, layer.rows, layer.columns), self.bits)
            for layer in schema.layers
            for factor in self.shared
            if factor in self.trained
        }

    def _shape(self, factor: Factor, rows: int, columns: int) -> tuple[int, int]:
        return (self.rank, columns) if factor == "A" else (rows, self.rank)


AnyTraining = SubspaceTraining | DenseTraining | FactorTraining
