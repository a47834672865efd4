# SPDX-License-Identifier: Apache-2.0
"""The GLUE tasks as the files of a data folder, and what of them trains, tunes and is held out.

The development sets are small (277 to 1,500 rows), so a part of the training rows is held out beside them: two methods that differ by a
point cannot be told apart on 872 rows. Learning rates are chosen on a third part that nothing else sees.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_client.worker.data import Example, load_examples
from fedcore.errors import ConfigError
from fedcore.job import DataSection, TaskSection

__all__ = ["TASKS", "GlueTask", "Parts", "class_of", "read_parts", "task_by_name"]

_PARTS_SEED = 2602_03019


@dataclass(frozen=True)
class GlueTask:
    """A task: where its columns are, and which number says how good a model is."""

    name: str
    folder: str
    text: str
    text_pair: str | None
    label: str
    labels: tuple[str, ...]
    metric: str
    """The task's own among what `edge_client.worker.evaluate` gives; `accuracy` there is Spearman's correlation for a regression."""

    def section(self, max_length: int) -> TaskSection:
        """As a job has it."""
        if not self.labels:
            return TaskSection(kind="regression", max_length=max_length)
        kind = "pair-classification" if self.text_pair else "text-classification"
        return TaskSection(kind=kind, labels=self.labels, max_length=max_length)  # type: ignore[arg-type]

    def data(self, folder: Path, name: str) -> DataSection:
        """A file of the task."""
        return DataSection(source=str(folder / self.folder / f"{name}.tsv"), text=self.text, text_pair=self.text_pair, label=self.label)


TASKS = {
    task.name: task
    for task in (
        GlueTask("sst2", "SST-2", "sentence", None, "label", ("0", "1"), "accuracy"),
        GlueTask("cola", "CoLA", "sentence", None, "label", ("0", "1"), "matthews"),
        GlueTask("mrpc", "MRPC", "#1 String", "#2 String", "Quality", ("0", "1"), "f1"),
        GlueTask("rte", "RTE", "sentence1", "sentence2", "label", ("not_entailment", "entailment"), "accuracy"),
        GlueTask("stsb", "STS-B", "sentence1", "sentence2", "score", (), "accuracy"),
    )
}


def task_by_name(name: str) -> GlueTask:
    """A task.

    Raises:
        ConfigError: No such task; names those there are.
    """
    if name not in TASKS:
        raise ConfigError(f"no task {name!r}", place="--task", remedy=f"one of {', '.join(TASKS)}")
    return TASKS[name]


@dataclass(frozen=True)
class Parts:
    """A task's rows: those that clients train on, those held out of the training file, those to tune on, and the development set."""

    train: list[Example]
    held: list[Example]
    tune: list[Example]
    dev: list[Example]


def read_parts(task: GlueTask, folder: Path, max_length: int, *, most_train: int, most_held: int) -> Parts:
    """Read a task; which row goes where depends on the file alone.

    Args:
        task: Which.
        folder: With one folder for each task.
        max_length: Tokens.
        most_train: Rows that clients share at most; 0 for all.
        most_held: Rows held out, and as many to tune on; never more than a seventh of the file each.

    Raises:
        DataError: A file is not there, or not what it should be.
    """
    section = task.section(max_length)
    rows = load_examples(task.data(folder, "train"), section)
    order = np.random.default_rng(_PARTS_SEED).permutation(len(rows))
    held = min(most_held, len(rows) // 7)
    shuffled = [rows[index] for index in order]
    train = shuffled[2 * held :][: most_train or None]
    return Parts(train, shuffled[:held], shuffled[held : 2 * held], load_examples(task.data(folder, "dev"), section))


def class_of(example: Example) -> Hashable:
    """What a split deals by: the label, or the nearest whole score."""
    return example.target if isinstance(example.target, int) or example.target is None else round(example.target)
