# SPDX-License-Identifier: Apache-2.0
"""A classifier's head that a model folder has already: from an earlier run of ours, or of somebody else.

The same labels in the same order: it is trained on from what it is. Other labels: a new head, since what the old one
says of a text means something else. The same labels in another order are refused, because nobody means that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_client.worker.architecture.configuration import said_of
from edge_client.worker.architecture.names import Stored
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import ModelError
from fedcore.weights.checkpoint import Tensors

__all__ = ["Head", "head_of", "labels_of"]

_NO_NAME = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class Head:
    """What of a folder's head is trained on.

    Attributes:
        shapes: Shapes of the head's tensors that the folder has, by the model's names.
        anew: Names of those that begin anew although the folder has them.
    """

    shapes: Mapping[str, tuple[int, ...]]
    anew: frozenset[str]

    def keeps(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor begins as the folder has it."""
        return name not in self.anew and self.shapes.get(name) == shape


def head_of(checkpoint: Tensors, model: Any, names: Mapping[str, Stored | None], task: TaskSection) -> Head:
    """Compare a folder's head with what a task needs.

    Args:
        checkpoint: The folder's tensors.
        model: The task's.
        names: Where its parameters lie.
        task: Its labels count.

    Raises:
        ModelError: The labels are the folder's, in another order.
    """
    outputs, prefix = task_of(task).outputs(), f"{model.base_model_prefix}."
    if outputs is None:
        return Head({}, frozenset())
    needed = {name: tuple(one.shape) for name, one in model.named_parameters() if not name.startswith(prefix)}
    shapes = {
        name: checkpoint.tensors[stored.name].shape
        for name in needed
        if (stored := names[name]) is not None and stored.single
    }
    # What has a row for each label: the output, which alone knows what labels mean.
    output = {name for name, shape in needed.items() if name in shapes and shape[:1] == (outputs,)}
    output |= {name for name, shape in shapes.items() if shape != needed[name]}
    theirs, ours = labels_of(checkpoint.folder), tuple(task.labels)
    if not output or theirs == ours or not (theirs or ours):
        return Head(shapes, frozenset())
    if not ours and all(shapes[name] == needed[name] for name in output):
        # A score has no name.
        return Head(shapes, frozenset())
    if sorted(theirs) == sorted(ours):
        raise ModelError(
            "the folder's head was tuned for the same labels in another order",
            place=str(checkpoint.folder / "config.json"),
            remedy=f"set task.labels to {list(theirs)}, or use the model before it was tuned",
        )
    return Head(shapes, frozenset(output))


def labels_of(folder: Path) -> tuple[str, ...]:
    """The labels that a folder names, in order; none where it only counts them."""
    named = said_of(folder).get("id2label")
    if not isinstance(named, dict) or not all(str(key).isdecimal() for key in named):
        return ()
    labels = tuple(str(named[key]) for key in sorted(named, key=int))
    return () if all(_NO_NAME.fullmatch(label) for label in labels) else labels
