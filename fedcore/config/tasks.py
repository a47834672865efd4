# SPDX-License-Identifier: Apache-2.0
"""What a model can learn to do, one class a task: what job files, data and heads need to know of it.

What trains and measures needs torch; each task names it by `package.module:Class`
(`edge_client.worker.data.tasks.WorkerTask`), and only the worker imports it. A task of one's own is registered in the
same way, in a module without NumPy or torch that an entry point of the group `fedkrso.tasks` names:

    @register_task("two-labels")
    class TwoLabels(Task):
        worker = "mine.tasks:TwoLabelsAtWork"
        ...
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeVar

from fedcore.errors import ConfigError, DataError
from fedcore.registry import TASKS

if TYPE_CHECKING:
    from fedcore.config.sections import TaskSection

__all__ = [
    "CHAT_KEYS",
    "USUAL_TASK",
    "CausalLM",
    "Classification",
    "Instruction",
    "PairClassification",
    "Regression",
    "Target",
    "Task",
    "label_index",
    "register_task",
    "task_of",
]

USUAL_TASK: Final = "causal-lm"
"""Of commands that are told no other."""

_MOST_SHOWN: Final = 80
_DECIMAL_COMMA: Final = re.compile(r"[+-]?\d*,\d+")

Target = int | float | tuple[float, ...] | None
"""What is to be learned of one example; None: the tokens themselves."""


class Task(ABC):
    """A kind of task; objects know the job's section.

    Args:
        section: `[task]` of the job.
    """

    worker: ClassVar[str]
    """`package.module:Class` of what trains and measures it."""
    pair: ClassVar[bool] = False
    """Whether each example must have a second text."""
    labelled: ClassVar[bool] = True
    """Whether each example must have a label (`target` reads it)."""
    scale: ClassVar[bool] = False
    """Whether `task.middle` has a meaning."""
    aims: ClassVar[Literal["", "classes", "scores"]] = ""
    """What a linear head aims at, of tasks whose head a ridge regression can begin (`HeadTask.targets`): one of several
    classes, or numbers."""
    headline: ClassVar[str] = "accuracy"
    """What the number is that reports call accuracy."""
    conversations: ClassVar[bool] = False
    """Whether a row is a conversation rather than a text, and the keys about chat templates have a meaning."""

    def __init__(self, section: TaskSection) -> None:
        self.section = section

    def check(self) -> None:
        """Check the section.

        Raises:
            ConfigError: It says what this task cannot mean.
        """
        if self.section.middle and not self.scale:
            raise ConfigError(
                f"{self.section.kind} has no scale",
                place="task.middle",
                remedy="leave it out, or set task.kind to regression",
            )
        if not self.conversations:
            for key, usual in CHAT_KEYS.items():
                if getattr(self.section, key) != usual:
                    raise ConfigError(
                        f"{self.section.kind} has no conversations",
                        place=f"task.{key}",
                        remedy="leave it out, or set task.kind to instruction",
                    )

    def metrics(self) -> tuple[str, ...]:
        """What it measures beside accuracy and loss (`WorkerTask.measures`) that nodes report too."""
        return ()

    def derived(self, loss: float) -> dict[str, float]:
        """Metrics that follow from the mean loss alone, so that nobody has to send them."""
        return {}

    @abstractmethod
    def outputs(self) -> int | None:
        """Numbers that a new head gives for a text; None where the model's own language head stays."""

    @abstractmethod
    def target(self, raw: Any, place: str) -> Target:
        """What is to be learned, from what a row has in its label column.

        Raises:
            DataError: Nothing that it can be; `place` says which row.
        """

    @abstractmethod
    def head_config(self) -> dict[str, Any]:
        """What an exported model's `config.json` says of the head."""


CHAT_KEYS: Final = {"template": None, "template_text": "", "learn": "all", "too_long": "refuse", "pack": False}
"""Keys of `[task]` that have a meaning for conversations only, and what says nothing."""

K = TypeVar("K", bound=type[Task])


def register_task(name: str) -> Callable[[K], K]:
    """A decorator of a `Task` class; `name` is what a job's `task.kind` says.

    Raises:
        ConfigError: The name is taken.
    """
    return TASKS.register(name)


def task_of(section: TaskSection, *, place: str = "task.kind") -> Task:
    """The task that a section names.

    Raises:
        ConfigError: No such task.
    """
    made: Task = TASKS.get(section.kind, place=place)(section)
    return made


def label_index(raw: Any, section: TaskSection, place: str) -> int:
    """A label's place in the label set.

    Raises:
        DataError: It is not in there.
    """
    text = raw if isinstance(raw, str) else str(raw)
    labels = tuple(section.labels)
    if text not in labels:
        raise DataError(f"label {_shown(text)} is not in task.labels", place=place, remedy=_near_label(text, labels))
    return labels.index(text)


def _near_label(text: str, labels: tuple[str, ...]) -> str:
    """What to do about a label that is none, also of one that a person cannot tell from one that is."""
    for label in labels:
        if _as_seen(text) == _as_seen(label):
            return f"it looks like {label!a}, and is {_shown(text, ascii)}: write both alike"
    return f"labels: {', '.join(labels[:12])}{', ...' if len(labels) > 12 else ''}"


def _as_seen(text: str) -> str:
    """Without what a person does not see: ways to write one character, and marks that have no width."""
    import unicodedata  # a megabyte, for an error

    plain = unicodedata.normalize("NFKC", text)
    return "".join(c for c in plain if unicodedata.category(c) != "Cf").strip()


def _shown(raw: Any, write: Callable[[Any], str] = repr) -> str:
    """A value for an error, not all of a long one."""
    try:
        text = write(raw)
    except ValueError:
        # An integer of more digits than Python writes.
        return "an integer of thousands of digits"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


@register_task("text-classification")
class Classification(Task):
    """One label of a set for each text."""

    worker = "edge_client.worker.data.kinds.classification:ClassificationAtWork"
    aims = "classes"

    def check(self) -> None:
        """Labels that tell classes apart; where a function gives them, they are looked at once it has."""
        super().check()
        labels = self.section.labels
        if isinstance(labels, str):
            return
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ConfigError(f"label {twice!r} is there twice", place="task.labels", remedy="leave one out")
        if len(labels) < 2:
            raise ConfigError(
                f"{self.section.kind} needs two labels or more, there {'is 1' if labels else 'are none'}",
                place="task.labels",
                remedy="name all that the data has",
            )

    def metrics(self) -> tuple[str, ...]:
        """Matthews' correlation, and F1 of two labels."""
        two = isinstance(self.section.labels, tuple) and len(self.section.labels) == 2
        return ("matthews", "f1") if two else ("matthews",)

    def outputs(self) -> int:
        """A logit for each label."""
        return len(self.section.labels)

    def target(self, raw: Any, place: str) -> int:
        """The label's place in the set."""
        return label_index(raw, self.section, place)

    def head_config(self) -> dict[str, Any]:
        """The labels' names."""
        labels = list(self.section.labels)
        return {
            "id2label": {str(index): label for index, label in enumerate(labels)},
            "label2id": {label: index for index, label in enumerate(labels)},
        }


@register_task("pair-classification")
class PairClassification(Classification):
    """One label of a set for each pair of texts."""

    pair = True


@register_task("regression")
class Regression(Task):
    """A score for each text."""

    worker = "edge_client.worker.data.kinds.regression:RegressionAtWork"
    aims = "scores"
    scale = True
    headline = "Spearman's correlation"

    def metrics(self) -> tuple[str, ...]:
        """Both correlations."""
        return "spearman", "pearson"

    def outputs(self) -> int:
        """The score."""
        return 1

    def target(self, raw: Any, place: str) -> float:
        """The score, which must be finite."""
        try:
            # True is 1 to Python, and 1_5 is 15: nobody means that.
            value = math.nan if isinstance(raw, bool) or (isinstance(raw, str) and "_" in raw) else float(raw)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            remedy = "regression needs a finite score in data.label"
            if isinstance(raw, str) and _DECIMAL_COMMA.fullmatch(raw.strip()):
                remedy += "; decimals have a point, not a comma"
            raise DataError(f"{_shown(raw)} is not a number", place=place, remedy=remedy)
        return value

    def head_config(self) -> dict[str, Any]:
        """One output."""
        return {"num_labels": 1, "problem_type": "regression", "id2label": {"0": "score"}, "label2id": {"score": 0}}


@register_task("causal-lm")
class CausalLM(Task):
    """The next token of plain text, with the model's own language head."""

    worker = "edge_client.worker.data.kinds.causal_lm:CausalLMAtWork"
    labelled = False
    headline = "mean probability of the right token"

    def metrics(self) -> tuple[str, ...]:
        """Share of tokens that the model thought the likeliest."""
        return ("token_accuracy",)

    def derived(self, loss: float) -> dict[str, float]:
        """Perplexity of a token."""
        return {"perplexity": math.exp(min(loss, 700.0))}

    def outputs(self) -> None:
        """No new head."""

    def target(self, raw: Any, place: str) -> None:
        """The tokens themselves."""

    def head_config(self) -> dict[str, Any]:
        """As it was."""
        return {}


@register_task("instruction")
class Instruction(CausalLM):
    """What an assistant says in conversations, with the model's own language head."""

    worker = "edge_client.worker.data.kinds.instruction:InstructionAtWork"
    conversations = True

    def check(self) -> None:
        """One template, and nothing cut where nothing may be."""
        section = self.section
        if section.template and section.template_text:
            raise ConfigError("there are two templates", place="task.template", remedy="leave template_text out")
        if section.min_length and section.too_long == "refuse":
            raise ConfigError(
                "a device may cut examples to min_length, and too_long refuses what must be cut",
                place="task.too_long",
                remedy='set it to "drop" or "cut", or leave min_length out',
            )
