# SPDX-License-Identifier: Apache-2.0
"""Split learning's way of training: a node's texts go through the model's first blocks, the front, which stays as it
is; what comes out of them, the activations, goes up, and the rest of the model, the back, trains at the coordinator."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from fedcore.config.channel import LARGEST_ERROR
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import ConfigError, UpdateRefused
from fedcore.fields.checked import Positive
from fedcore.numbers.coding import Coding
from fedcore.round.header import UpdateHeader
from fedcore.round.training.base import Shapes, Training
from fedcore.round.training.channel import ChannelTraining
from fedcore.round.training.dense import blocks_of
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

__all__ = [
    "ACTIVATIONS",
    "ACTIVATION_UNIT",
    "BEGINS",
    "BLOCK_TOKENS",
    "GOES_ON",
    "TARGET_UNIT",
    "TEXTS",
    "SplitTraining",
]

ACTIVATIONS: Final = "/activations/"
"""Begins the names of the entries with a node's activations, `BLOCK_TOKENS` tokens each, a row for each token; rows
that no text has are zero, and take next to nothing on the wire."""
TEXTS: Final = "/texts"
"""The entry that says which rows are a text, and its target: `BEGINS` in the first row where a text begins, `GOES_ON`
where it goes on, and in the second row, where it begins, its target."""
BLOCK_TOKENS: Final = 1024
BEGINS, GOES_ON = 1.0, 0.5
ACTIVATION_UNIT: Final = 256.0
"""Activations travel in units of this: an update's numbers end at 2**7, some hidden states of large models beyond."""
TARGET_UNIT: Final = 256.0
"""And so do a class's number, or a target."""
_TEXT_BITS: Final = 16


class SplitTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="split"):
    """Split learning with a frozen front. The state has the changes of the back's layers, an update of a node has
    activations, and that of the coordinator (`worked`) the back's changes in this round."""

    learned: ClassVar[str] = "fedcore.model.learned:PartLearned"

    front: Positive
    """Blocks that a node computes."""
    tokens: Annotated[int, Meta(ge=1, le=2**24)]
    """Whose activations a node sends, at most."""
    noise: Annotated[float, Meta(ge=0, le=LARGEST_ERROR)] = 0.0
    """Added to activations in each step of the back: its mean square, in units of a token's."""
    back_intervals: Positive
    """Intervals of the back's training, which the coordinator goes on from when its worker was killed."""
    stage: Literal["activations", "back"] = "activations"
    """`back` is the coordinator's own part of a round, and in no plan that nodes get."""

    @property
    def one_pass(self) -> bool:
        """On a node, which trains nothing."""
        return self.stage == "activations"

    @property
    def work(self) -> str:
        """Trains the back."""
        return "edge_client.worker.programs.back:trained_back"

    @property
    def worked(self) -> SplitTraining:
        """The back's training: on what arrived, with noise of its own in each step."""
        over = ChannelTraining(errors=(self.noise,)) if self.noise else None
        return msgspec.structs.replace(self, stage="back", intervals=self.back_intervals, channel=over)

    @property
    def before_channel(self) -> int:
        """Activations are what comes over it."""
        return self.front

    def untouched(self, schema: ModelSchema) -> frozenset[str]:
        """The back: a node has it on its disk, for whoever measures or answers there."""
        return frozenset(layer.name for layer in self.back(schema)) if self.one_pass else frozenset()

    def back(self, schema: ModelSchema) -> tuple[LayerSpec, ...]:
        """The layers behind the front.

        Raises:
            ConfigError: There are no blocks left for it, or tensors train that may be in the front.
        """
        if stored := [tensor.name for tensor in schema.tensors if tensor.in_checkpoint]:
            raise ConfigError(
                f"{stored[0]} would train whole, and the front stays as it is",
                place="model.trained_tensors",
                remedy="leave it out, and the model's own head too",
            )
        blocks = blocks_of(layer.name for layer in schema.layers)
        if self.front >= len(blocks):
            raise ConfigError(
                f"{self.front} blocks on a node, and {len(blocks)} have layers that train: none is left to train",
                place="method.front",
                remedy=f"lower it to {max(1, len(blocks) - 1)} or less" if len(blocks) > 1 else "use another model",
            )
        names = {name for block in blocks[self.front :] for name in block}
        return tuple(layer for layer in schema.layers if layer.name in names)

    def width(self, schema: ModelSchema) -> int:
        """Numbers of an activation: what the first layer of a block takes."""
        return self.back(schema)[0].columns

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The back's changes."""
        return {layer.name: (layer.rows, layer.columns) for layer in self.back(schema)}

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """As the stage says."""
        if self.stage == "back":
            return self.layer_shapes(schema)
        width, starts = self.width(schema), range(0, self.tokens, BLOCK_TOKENS)
        found = {
            f"{ACTIVATIONS}{number}": (min(BLOCK_TOKENS, self.tokens - start), width)
            for number, start in enumerate(starts)
        }
        return found | {TEXTS: (2, self.tokens)}

    def sent_tensors(self, schema: ModelSchema) -> tuple[TensorSpec, ...]:
        """A node has no head to train."""
        return () if self.one_pass else self.shared_tensors(schema)

    def coding(self, name: str) -> Coding:
        """The back's changes never travel as an update: they are as they were trained."""
        if self.stage == "back":
            return Coding("floats", 32)
        return Coding("integers", _TEXT_BITS if name == TEXTS else self.bits)

    def interval_numbers(self, schema: ModelSchema) -> int:
        """On a node, activations and what they are of."""
        return (self.width(schema) + 4) * self.tokens

    @property
    def looked_at(self) -> frozenset[str]:
        """What is said of texts."""
        return frozenset({TEXTS} if self.one_pass else ())

    def look(self, rows: Sequence[Sequence[float]], task: TaskSection, header: UpdateHeader) -> None:
        """See `Training.look`: texts lie one behind the other, none is longer than the task's, and each has a target
        that the task knows."""
        marks, targets = rows
        end = next((place for place, mark in enumerate(marks) if not mark), len(marks))
        begins = [place for place, mark in enumerate(marks[:end]) if mark == BEGINS]
        whole = set(marks[:end]) <= {BEGINS, GOES_ON} and not any(marks[end:]) and begins[:1] == [0]
        longest = max((stop - start for start, stop in itertools.pairwise([*begins, end])), default=0)
        if not whole or len(begins) != header.examples or longest > task.max_length:
            words = f"{len(begins)} texts of up to {longest} tokens where {header.examples} were announced"
            raise UpdateRefused(words, place=header.node)
        if not task_of(task).scale:
            known = {label / TARGET_UNIT for label in range(task_of(task).outputs() or 0)}
            if any(targets[place] not in known for place in begins):
                raise UpdateRefused("a text with a label that the task does not have", place=header.node)
