# SPDX-License-Identifier: Apache-2.0
"""What all ways of training say, and the names of entries."""

from __future__ import annotations

import reprlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from fedcore.config.adapters import AnyAdapter
from fedcore.config.sections import TaskSection
from fedcore.errors import UpdateRefused
from fedcore.fields.checked import Positive, RoundNumber
from fedcore.fields.types import Bits
from fedcore.numbers.coding import Coding
from fedcore.round.header import Expected, UpdateHeader
from fedcore.round.training.artefact import ArtefactKind
from fedcore.round.training.channel import ChannelTraining
from fedcore.weights.schema import ModelSchema, TensorSpec

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
    "USUAL_RANK",
    "LearningRate",
    "PrivateTraining",
    "Rank",
    "Seed",
    "Shapes",
    "Training",
    "merged_entries",
    "numbers",
]

TENSOR_BITS: Final[Bits] = 16
USUAL_RANK: Final = 16
"""FedKRSO's, of job files and of commands that look at a model before there is one."""
UP: Final = "/up"
"""Ends the name of a left factor that is merged: `up @ down` is added to the layer's weight."""
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
"""Of a root in an update. At 8 bits it is off by 1 % (median); at 4 by 19 %, and a quarter of them are rounded to
zero."""
MAX_DIRECTIONS: Final = 2**16
Rank = Annotated[int, Meta(ge=1, le=4096)]
Seed = Annotated[int, Meta(ge=0)]
LearningRate = Annotated[float, Meta(gt=0, le=1e6)]
Shapes = dict[str, tuple[int, int]]
T = TypeVar("T", bound="Training")


def merged_entries(schema: ModelSchema) -> frozenset[str]:
    """Names of the entries that begin again at a merge, where a method has them; the others stay as they are.

    Second moments are added to nothing: they belong to the seeds that end with the generation.
    """
    return frozenset(layer.name + ending for layer in schema.layers for ending in ("", UP, DOWN, COEFFICIENTS, SECOND))


class PrivateTraining(msgspec.Struct, frozen=True, kw_only=True):
    """What a node does so that its texts stay hidden (`fedcore.config.privacy`)."""

    level: Literal["node", "example"]
    """`node`: the update is clipped. `example`: each row's gradient is, of secretly drawn batches, with noise."""
    clip: Annotated[float, Meta(gt=0, le=128)]
    noise_multiplier: Annotated[float, Meta(gt=0, le=1e6)]
    delta: Annotated[float, Meta(gt=0, lt=1)]
    least_examples: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    """A node with fewer does not take part."""


class Training(msgspec.Struct, frozen=True, kw_only=True, tag_field="method"):
    """What all methods say; abstract, a method's own struct derives from it
    (`fedcore.round.methods.register_method`)."""

    learned: ClassVar[str] = ""
    """`package.module:Class` of what a published state means for a layer's weight (`fedcore.model.learned.Learned`);
    without it a run cannot be exported. A name, since what only plans needs no NumPy."""
    generation: RoundNumber
    """How often what was learned was merged into the base."""
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
    published_bits: Annotated[int, Meta(ge=8, le=16)] = 16
    """Bits of a published number, but for second moments, which have 16."""
    privacy: PrivateTraining | None = None
    """None where nothing is promised."""
    channel: ChannelTraining | None = None
    """None where texts' embeddings are trained on as they are."""

    @property
    def method(self) -> str:
        """The struct's name in a plan."""
        return str(self.__struct_config__.tag)

    def at_rates(self: T, factor: float) -> T:
        """The same with learning rates that are so many times as large, in all rounds."""
        rates = {name: getattr(self, name) * factor for name in ("learning_rate", "tensor_learning_rate")}
        return msgspec.structs.replace(self, **rates)

    @property
    def seeds(self) -> tuple[int, ...]:
        """What the entries that are merged belong to, new in each generation: the pool, or one number. None in methods
        that never merge."""
        return ()

    @property
    def rank(self) -> int:
        """r, for methods that have one."""
        return 0

    @property
    def rows_from(self) -> str:
        """What rows of P come from, in methods with subspaces (`fedcore.subspaces.projection.projection_of`).

        States and digests say it, so a method with an artefact names its SHA-256 here: `artefact/SHA256`, whose rows
        are signs, if the method says no more."""
        return f"artefact/{self.artefact}" if self.artefact else "signs"

    @property
    def adapter(self) -> AnyAdapter | None:
        """The adapter that the method trains, whose tensors the model's schema then has; None in most methods."""
        return None

    @property
    def virtual_tokens(self) -> int:
        """Tokens that the method puts before each text, which a model must have positions for."""
        return 0 if self.adapter is None else self.adapter.tokens

    @property
    def trains_tensors(self) -> bool:
        """Whether the tensors trained whole (a task head) get a gradient in the round."""
        return not self.one_pass and not self.leaves_tensors

    @property
    def leaves_tensors(self) -> bool:
        """Whether they get none in any round of the method: then a new head has to come from sums."""
        return False

    @property
    def stands_beside(self) -> bool:
        """Whether what is learned stands beside the layers, and is no change of a weight."""
        return self.adapter is not None

    @property
    def artefact_kind(self) -> ArtefactKind | None:
        """The run artefact that the method asks for; None in most methods."""
        return None

    @property
    def artefact(self) -> str:
        """SHA-256 of the run's artefact; empty before it is made, and where there is none."""
        return ""

    def read_artefact(self, path: Path, schema: ModelSchema) -> Any:
        """What the artefact holds, as both halves of the method take it: the file itself, if the method does not say.

        Args:
            path: The file; its SHA-256 is right.
            schema: The model's.

        Raises:
            MalformedMessage: Not what the plan promises.
        """
        return path

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

    @property
    def learns(self) -> Training:
        """What the state's entries are of: this training, but in a round that comes before the rounds of another one
        (`fedcore.round.training.head.HeadTraining.then`), whose entries the run's state has from the beginning."""
        return self

    @property
    def phase(self) -> str:
        """What tables call the round beside its number; nothing for a method's usual rounds."""
        return ""

    @property
    def one_pass(self) -> bool:
        """Whether a round is one pass over all of a node's rows, in their order, instead of `steps` batches of
        shuffled ones."""
        return False

    @property
    def work(self) -> str:
        """`package.module:function` of what a worker process of the coordinator makes of a round's updates: one update,
        which the round is then closed with alone (`fedcore.worker.work.Work`). Empty where their sum is enough."""
        return ""

    @property
    def worked(self) -> Training:
        """What that update is of."""
        return self

    def untouched(self, schema: ModelSchema) -> frozenset[str]:
        """Layers that a node's rounds compute nothing with: their weights stay on its disk."""
        return frozenset()

    @property
    def before_channel(self) -> int:
        """Blocks that a text goes through before it comes over a channel; 0: embeddings do."""
        return 0

    @property
    def looked_at(self) -> frozenset[str]:
        """Entries of an update whose numbers mean more than exact sums ask of them (`look`)."""
        return frozenset()

    def look(self, rows: Sequence[Sequence[float]], task: TaskSection, header: UpdateHeader) -> None:
        """Check the numbers of such an entry.

        Args:
            rows: As they arrived.
            task: Of the plan.
            header: Of the update.

        Raises:
            UpdateRefused: They mean nothing.
        """

    def steps_of(self, rows: int) -> int:
        """Batches that a node with so many rows goes through in a round."""
        return -(-rows // self.batch_size) if self.one_pass else self.steps

    def intervals_of(self, rows: int) -> int:
        """Intervals of that; the last one may be shorter in one pass."""
        return -(-self.steps_of(rows) // self.interval_steps)

    def shapes(self, schema: ModelSchema) -> Shapes:
        """(rows, columns) of every entry of the state; 0 where each published state has a number of its own."""
        return self.layer_shapes(schema) | {tensor.name: tensor.matrix for tensor in self.shared_tensors(schema)}

    @property
    def shares_model(self) -> bool:
        """Whether all nodes have the same model; otherwise a part of it stays with each."""
        return True

    def shared_tensors(self, schema: ModelSchema) -> tuple[TensorSpec, ...]:
        """The tensors trained whole that all nodes share; the others stay with each node."""
        return schema.tensors

    def sent_tensors(self, schema: ModelSchema) -> tuple[TensorSpec, ...]:
        """Those of them whose change an update has."""
        return self.shared_tensors(schema)

    def update_shapes(self, schema: ModelSchema) -> Shapes:
        """(rows, columns) of what an update may say at most, of layers and of tensors."""
        return self.update_layer_shapes(schema) | {tensor.name: tensor.matrix for tensor in self.sent_tensors(schema)}

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The same, of layers alone."""
        return self.layer_shapes(schema)

    @abstractmethod
    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """(rows, columns) of the entries that belong to target layers."""

    def expected(self, schema: ModelSchema, header: UpdateHeader) -> dict[str, Expected]:
        """The records that an update must have.

        Raises:
            UpdateRefused: The header does not say what the plan asks for.
        """
        self.check_header(header)
        tensors = {
            tensor.name: Expected(tensor.matrix, Coding("integers", TENSOR_BITS))
            for tensor in self.sent_tensors(schema)
        }
        return self.expected_layers(schema, header) | tensors

    def expected_layers(self, schema: ModelSchema, header: UpdateHeader) -> dict[str, Expected]:
        """Of the entries that belong to target layers."""
        return {name: Expected(shape, self.coding(name)) for name, shape in self.update_layer_shapes(schema).items()}

    def coding(self, name: str) -> Coding:
        """How an update's entry travels, of those that belong to target layers."""
        return Coding("integers", self.bits)

    def averaged_by_column(self, schema: ModelSchema) -> frozenset[str]:
        """Entries whose mean is, column by column, over the participants that have the column; elsewhere who lacks it
        counts as zero."""
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


def numbers(shapes: Shapes) -> int:
    """How many they are together."""
    return sum(rows * columns for rows, columns in shapes.values())
