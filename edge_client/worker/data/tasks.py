# SPDX-License-Identifier: Apache-2.0
"""Tasks at work: from examples to token ids, from a model to a loss, and the numbers that say how good it is.

Each task is a class that `fedcore.config.tasks` names; ours are in `edge_client.worker.data.kinds`. Losses are summed
over examples (tokens, for causal-lm) and divided by the whole batch's count, so that gradient accumulation gives the
whole batch's gradient up to float rounding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.worker.data.batches import Encoded, batches, in_order, outputs, pad, states_and_labels
from edge_client.worker.data.reading import Example, together
from edge_client.worker.model.built import BuiltModel
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import Target, task_of
from fedcore.errors import ConfigError, DataError
from fedcore.registry import resolve

__all__ = [
    "Encoded",
    "EncodedRows",
    "HeadTask",
    "Question",
    "Scores",
    "Shown",
    "WorkerTask",
    "batches",
    "encode",
    "encoded_rows",
    "in_order",
    "outputs",
    "pad",
    "states_and_labels",
    "summed_loss",
    "worker_task",
]


@dataclass(frozen=True)
class Scores:
    """What a model says of examples, in their order.

    Attributes:
        losses: float64 (rows,); of a causal-lm example the sum over its tokens.
        weights: What each counts in the mean loss, int64 (rows,).
        outputs: Logits, or scores of a regression, float32 (rows, labels); of a causal-lm example one column: how many
            of its tokens the model thought the likeliest.
    """

    losses: NDArray[np.float64]
    weights: NDArray[np.int64]
    outputs: NDArray[np.float32]


@dataclass(frozen=True)
class Question:
    """What a model reads, and the answer that is right, as token ids.

    Attributes:
        prompt: At least one token.
        answer: With the token that ends it, where one does.
        whole: Whether the answer counts whole. Of a text that goes on, as much counts as a model may answer.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    whole: bool = True


@dataclass(frozen=True)
class EncodedRows:
    """Examples as token ids, and what became of them.

    Attributes:
        encoded: Pieces of all, in order.
        firsts: Of each example that is not left out the first piece.
        cut: Examples that lost a part.
        left_out: Examples of which nothing is learned.
    """

    encoded: list[Encoded]
    firsts: list[Encoded]
    cut: int
    left_out: int


@dataclass(frozen=True)
class Shown:
    """An example as it will be seen, for a person.

    Attributes:
        pieces: Its text, each piece with whether it is learned.
        tokens: How many it has before anything is cut.
    """

    pieces: tuple[tuple[str, bool], ...]
    tokens: int

    @property
    def turns(self) -> int:
        """Pieces that are learned."""
        return sum(learned for _, learned in self.pieces)


class WorkerTask(ABC):
    """A task in the worker.

    Args:
        section: `[task]` of the plan.
    """

    sample_target: ClassVar[Target]
    """A target as any example may have it, for measurements without data."""

    def __init__(self, section: TaskSection) -> None:
        self.section = section

    def shown(self, example: Example, tokenizer: Any) -> Shown:
        """An example for a person, before it is cut."""
        texts = (example.text,) if example.text_pair is None else (example.text, "\n", example.text_pair)
        tokens = len(tokenizer(example.text, example.text_pair, verbose=False)["input_ids"])
        return Shown(tuple((text, False) for text in texts), tokens)

    def sample(self, ids: tuple[int, ...], types: tuple[int, ...] | None) -> Encoded:
        """An example of these tokens as any may be, for measurements without data."""
        return Encoded(ids, types, self.sample_target)

    def rows(self, encoded: Sequence[Encoded]) -> Sequence[Encoded]:
        """What goes through the model when it trains: an example is a row, unless a task packs them."""
        return encoded

    def encode(self, example: Example, tokenizer: Any) -> Iterator[Encoded]:
        """An example as token ids, cut to `max_length`; several, or none, where a task cuts texts into pieces."""
        made = tokenizer(example.text, example.text_pair, truncation=True, max_length=self.section.max_length)
        if not made["input_ids"]:
            raise DataError("the tokenizer leaves no token of it", place=example.place, remedy="leave the row out")
        types = made.get("token_type_ids")
        yield Encoded(tuple(made["input_ids"]), tuple(types) if types else None, example.target)

    @abstractmethod
    def forward(self, model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device) -> Tensor:
        """What the model's layers make of a micro-batch, whatever is to be learned of it."""

    @abstractmethod
    def summed_loss(
        self, model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device
    ) -> Tensor:
        """Loss of a micro-batch, summed over what its examples count (`Encoded.weight`); a scalar with a graph."""

    @abstractmethod
    def scores(
        self, model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """Each example's loss (b,), and the head's outputs (b, labels), or what else is measured of it; None for
        nothing."""

    @abstractmethod
    def predictions(self, scores: Scores, encoded: Sequence[Encoded]) -> tuple[NDArray[Any], NDArray[Any]]:
        """What the model says of each example, and what is right: that which metrics compare, (rows, ...) each."""

    @abstractmethod
    def measures(self, scores: Scores, encoded: Sequence[Encoded], loss: float) -> tuple[float, dict[str, float]]:
        """The number that is called accuracy, and the task's other metrics; `loss` is the mean."""

    def headline(
        self, scores: Scores, encoded: Sequence[Encoded]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
        """What each example adds to the number that is called accuracy, and what it counts in it, (rows,) each; None
        where that number is no mean over examples."""
        return None

    def trivial(self, encoded: Sequence[Encoded]) -> float | None:
        """What the number called accuracy is of one answer to all examples, the best such; None where that says nothing
        (a correlation with what is always the same, a language model's tokens)."""
        return None

    def means(
        self, scores: Scores, encoded: Sequence[Encoded]
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Of the task's other metrics those that are means over examples: as `headline`, by name."""
        return {}

    def question(self, encoded: Encoded) -> Question | None:
        """What a model is asked of an example when its answers are measured; None in a task that writes none."""
        return None


class HeadTask(WorkerTask):
    """A task that a new head on the model answers."""

    @abstractmethod
    def loss(self, said: Tensor, batch: Sequence[Encoded], reduction: Literal["sum", "none"]) -> Tensor:
        """Loss of the head's outputs (b, labels): of each example (b,), or the sum of all."""

    def targets(self, batch: Sequence[Encoded]) -> Tensor:
        """What a linear head aims at, float64 (b, labels), in a task that says that it aims at something
        (`fedcore.config.tasks.Task.aims`)."""
        raise ConfigError(f"{self.section.kind} says not what a head aims at", place="task.kind")

    def forward(self, model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device) -> Tensor:
        """The head's outputs (b, labels)."""
        return outputs(model, batch, pad_id, torch_device)

    def summed_loss(
        self, model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device
    ) -> Tensor:
        """Loss in float32, summed over examples."""
        return self.loss(outputs(model, batch, pad_id, torch_device).float(), batch, "sum")

    def scores(
        self, model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Losses and outputs in float32."""
        said = outputs(model, batch, pad_id, torch_device).float()
        return self.loss(said, batch, "none"), said


def worker_task(section: TaskSection) -> WorkerTask:
    """The task of a plan.

    Raises:
        ConfigError: It cannot be imported.
    """
    made: WorkerTask = resolve(task_of(section).worker, place=f"task {section.kind}")(section)
    return made


def encode(examples: Sequence[Example], task: TaskSection, tokenizer: Any) -> list[Encoded]:
    """Tokenise; classification truncates to `max_length`, causal-lm cuts into pieces of it.

    Raises:
        DataError: An example cannot be learned from, or nothing is left to train on.
    """
    return encoded_rows(examples, task, tokenizer).encoded


def encoded_rows(examples: Sequence[Example], task: TaskSection, tokenizer: Any) -> EncodedRows:
    """`encode`, with what was cut and left out.

    Raises:
        DataError: An example cannot be learned from, or nothing is left to train on.
    """
    at_work, pieces, wrong = worker_task(task), list[list[Encoded]](), list[DataError]()
    for example in examples:
        try:
            pieces.append(list(at_work.encode(example, tokenizer)))
        except DataError as error:
            wrong.append(error)
    if wrong:
        raise together(wrong)
    whole = [piece for own in pieces for piece in own]
    if not whole and task_of(task).conversations:
        raise DataError("no row fits task.max_length", remedy="raise it, or see `fedkrso data check`")
    if not whole:
        raise DataError("no example is longer than one token", remedy="check data.text")
    firsts = [own[0] for own in pieces if own]
    return EncodedRows(whole, firsts, sum(one.cut for one in whole), len(pieces) - len(firsts))


def summed_loss(
    model: BuiltModel, batch: Sequence[Encoded], task: TaskSection, pad_id: int, torch_device: torch.device
) -> Tensor:
    """Loss of a micro-batch, summed over its examples (tokens, for causal-lm); a scalar with a graph."""
    return worker_task(task).summed_loss(model, batch, pad_id, torch_device)
