# SPDX-License-Identifier: Apache-2.0
"""The tasks as the files of a data folder, and what of them trains, tunes and is held out.

GLUE's development sets are small (277 to 1,500 rows of those the tests know), so a part of the training rows is held
out beside them: two methods that differ by a point cannot be told apart on 872 rows. Learning rates are chosen on a
third part that nothing else sees."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, TypeGuard

import numpy as np

from edge_client.worker.data.reading import Example, load_examples
from edge_client.worker.data.sources import Row, read_rows
from fedcore.config.sections import DataSection, TaskSection
from fedcore.data.splits import Split
from fedcore.errors import ConfigError, DataError

__all__ = [
    "TASKS",
    "USUAL_FOLDER",
    "Dealt",
    "GlueTask",
    "Parts",
    "PlayTask",
    "Task",
    "check_split",
    "read_parts",
    "task_by_name",
]

USUAL_FOLDER: Final = Path("data")
"""With one folder for each task."""
_PARTS_SEED = 2602_03019
_ENTAILMENT = ("not_entailment", "entailment")
_INFERENCE = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class Dealt:
    """An example, and what a split deals it by."""

    example: Example
    group: Hashable


class Task(Protocol):
    """What a model learns, from which files, and how good it is."""

    @property
    def name(self) -> str:
        """On the command line."""
        ...

    @property
    def metric(self) -> str:
        """The task's own, among what `edge_client.worker.train.evaluate` gives."""
        ...

    @property
    def metric_name(self) -> str:
        """The same for people."""
        ...

    @property
    def beside(self) -> str | None:
        """Another metric that is told of the last round."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Of the metric."""
        ...

    @property
    def natural(self) -> bool:
        """Whether examples come in groups that a client can have whole."""
        ...

    @property
    def kind(self) -> str:
        """As `task.kind` of a job."""
        ...

    def section(self, max_length: int, folder: Path = USUAL_FOLDER) -> TaskSection:
        """As a job has it.

        Args:
            max_length: Tokens.
            folder: With one folder for each task, where labels are the data's.

        Raises:
            DataError: A file is not there, or not what it should be.
        """
        ...

    def read(self, folder: Path, section: TaskSection) -> tuple[list[Dealt], list[Example]]:
        """All rows that may train, and the development set.

        Args:
            folder: With one folder for each task.
            section: As `section` gave it.

        Raises:
            DataError: A file is not there, or not what it should be.
        """
        ...


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE, or one whose files are like its: where its columns are, and which number says how good a model
    is."""

    name: str
    folder: str
    text: str
    text_pair: str | None
    label: str
    labels: tuple[str, ...] | None
    """None: those of the training file. Empty for a regression."""
    metric: str
    """What rates are chosen by and tables compare; `accuracy` is Spearman's correlation for a regression."""
    beside: str | None = None
    """F1 only here: on MRPC it is 0.81 where a model says one class for every row, and chooses such a one."""
    middle: float = 0.0
    """Of a regression's scale."""
    dev: str = "dev"
    ending: str = "tsv"
    prompt: str = "{text}"
    """What a model reads of a text. One that goes on with what it reads says more of a text that ends in a question."""
    higher_is_better: bool = True
    natural: bool = False

    @property
    def kind(self) -> str:
        """As `task.kind` of a job."""
        if self.labels == ():
            return "regression"
        return "pair-classification" if self.text_pair else "text-classification"

    @property
    def metric_name(self) -> str:
        """For people."""
        return {"matthews": "Matthews correlation"}.get(
            self.metric, "Spearman correlation" if self.labels == () else "accuracy"
        )

    def section(self, max_length: int, folder: Path = USUAL_FOLDER) -> TaskSection:
        """As a job has it."""
        if self.labels == ():
            return TaskSection(kind=self.kind, max_length=max_length, middle=self.middle)
        labels = self._labels(folder) if self.labels is None else self.labels
        return TaskSection(kind=self.kind, labels=labels, max_length=max_length)

    def read(self, folder: Path, section: TaskSection) -> tuple[list[Dealt], list[Example]]:
        """A row is dealt by its label, or by its score's nearest whole number."""
        rows, dev = (self._examples(folder, name, section) for name in ("train", self.dev))
        return [Dealt(row, _class_of(row)) for row in rows], dev

    def _examples(self, folder: Path, name: str, section: TaskSection) -> list[Example]:
        found = load_examples(self._data(folder, name), section)
        return [replace(example, text=self.prompt.replace("{text}", example.text)) for example in found]

    def _labels(self, folder: Path) -> tuple[str, ...]:
        """In the order of the alphabet."""
        found = {str(row[self.label]) for _, row in read_rows(self._data(folder, "train")) if _has(row, self.label)}
        if len(found) < 2:
            where = str(folder / self.folder)
            raise DataError(f"no two labels in a column {self.label!r}", place=where, remedy="fetch the file again")
        return tuple(sorted(found))

    def _data(self, folder: Path, name: str) -> DataSection:
        return DataSection(
            source=str(folder / self.folder / f"{name}.{self.ending}"),
            text=self.text,
            text_pair=self.text_pair,
            label=self.label,
        )


@dataclass(frozen=True)
class PlayTask:
    """Speeches of plays in one text file; a speaker's speeches are a group. The file's last tenth is the development
    set."""

    name: str
    file: str
    metric: str = "perplexity"
    metric_name: str = "perplexity"
    beside: str | None = None
    higher_is_better: bool = False
    natural: bool = True
    kind: str = "causal-lm"

    def section(self, max_length: int, folder: Path = USUAL_FOLDER) -> TaskSection:
        """As a job has it."""
        return TaskSection(kind=self.kind, max_length=max_length)

    def read(self, folder: Path, section: TaskSection) -> tuple[list[Dealt], list[Example]]:
        """Blocks between empty lines; the first line of each is the speaker's name and a colon."""
        path = folder / self.file
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cannot be read: {error}", place=str(path), remedy="set --data to the folder of data sets"
            ) from None
        rows = []
        for block in filter(str.strip, text.split("\n\n")):
            speaker, separator, speech = block.strip().partition(":\n")
            if separator and speech.strip():
                rows.append(Dealt(Example(speech, None, None), speaker))
        if len(rows) < 10:
            raise DataError(
                f"{len(rows)} speeches are too few",
                place=str(path),
                remedy="each is a line `SPEAKER:`, lines of text and an empty line",
            )
        cut = len(rows) - len(rows) // 10
        return rows[:cut], [row.example for row in rows[cut:]]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        GlueTask("sst2", "SST-2", "sentence", None, "label", ("0", "1"), "accuracy"),
        GlueTask("cola", "CoLA", "sentence", None, "label", ("0", "1"), "matthews"),
        GlueTask("mrpc", "MRPC", "#1 String", "#2 String", "Quality", ("0", "1"), "accuracy", "f1"),
        GlueTask("rte", "RTE", "sentence1", "sentence2", "label", _ENTAILMENT, "accuracy"),
        GlueTask("stsb", "STS-B", "sentence1", "sentence2", "score", (), "accuracy", middle=2.5),
        GlueTask("qnli", "QNLI", "question", "sentence", "label", _ENTAILMENT, "accuracy"),
        GlueTask("qqp", "QQP", "question1", "question2", "is_duplicate", ("0", "1"), "accuracy", "f1"),
        GlueTask("mnli", "MNLI", "sentence1", "sentence2", "gold_label", _INFERENCE, "accuracy", dev="dev_matched"),
        GlueTask("clinc150", "clinc150", "text", None, "intent", None, "accuracy", dev="test", ending="csv"),
        GlueTask(
            *("sst2-prompt", "SST-2", "sentence", None, "label", ("0", "1"), "accuracy"),
            prompt="Review: {text}\nSentiment:",
        ),
        PlayTask("shakespeare", "tinyshakespeare/input.txt"),
    )
}


def task_by_name(name: str) -> Task:
    """A task.

    Raises:
        ConfigError: No such task; names those there are.
    """
    if name not in TASKS:
        raise ConfigError(f"no task {name!r}", place="--task", remedy=f"one of {', '.join(TASKS)}")
    return TASKS[name]


@dataclass(frozen=True)
class Parts:
    """A task's rows: those that clients train on, those held out of the training file, those to tune on, and the
    development set; and the task as a job has it."""

    section: TaskSection
    train: list[Dealt]
    held: list[Example]
    tune: list[Example]
    dev: list[Example]


def read_parts(
    task: Task, folder: Path, max_length: int, *, most_train: int, most_held: int, most_dev: int = 0
) -> Parts:
    """Read a task; which row goes where depends on the file alone.

    Args:
        task: Which.
        folder: With one folder for each task.
        max_length: Tokens.
        most_train: Rows that clients share at most; 0 for all.
        most_held: Rows held out, and as many to tune on; never more than a seventh of the file each.
        most_dev: Rows of the development set at most; 0 for all.

    Raises:
        DataError: A file is not there, or not what it should be.
    """
    section = task.section(max_length, folder)
    rows, dev = task.read(folder, section)
    order = np.random.default_rng(_PARTS_SEED).permutation(len(rows))
    held = min(most_held, len(rows) // 7)
    if held < 1:
        raise DataError(
            f"{len(rows)} rows are too few to hold some out", place=f"{folder}: {task.name}", remedy="use at least 7"
        )
    shuffled = [rows[index] for index in order]
    train = shuffled[2 * held :][: most_train or None]
    if most_dev and most_dev < len(dev):
        chosen = np.random.default_rng(_PARTS_SEED).permutation(len(dev))[:most_dev]
        dev = [dev[index] for index in sorted(chosen)]
    return Parts(
        section,
        train,
        [row.example for row in shuffled[:held]],
        [row.example for row in shuffled[held : 2 * held]],
        dev,
    )


def check_split(task: Task, split: Split) -> None:
    """Check that a task can be split so.

    Raises:
        ConfigError: It has no groups of its own.
    """
    if split.kind == "labels" and "classification" not in task.kind:
        raise ConfigError(
            f"{task.name} has no labels to be dealt by", place="--split labels", remedy="use iid or dirichlet:0.5"
        )
    if split.kind == "natural" and not task.natural:
        raise ConfigError(
            f"{task.name} has no groups to stay whole", place="--split natural", remedy="use iid or dirichlet:0.5"
        )


def _has(row: Row | DataError, column: str) -> TypeGuard[Row]:
    """What is wrong with a row is told where all rows are read."""
    return not isinstance(row, DataError) and column in row


def _class_of(example: Example) -> Hashable:
    return round(example.target) if isinstance(example.target, float) else example.target
