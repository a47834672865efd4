# SPDX-License-Identifier: Apache-2.0
"""A node's data as training will see it, without a model: what is learned of a row, what is cut, what cannot be
read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edge_client.worker.data.reading import Example, example_of
from edge_client.worker.data.sources import read_rows
from edge_client.worker.data.tasks import Encoded, Shown, worker_task
from fedcore.config.sections import DataSection, TaskSection
from fedcore.errors import DataError

__all__ = ["SHARES", "Checked", "as_numbers", "check_data", "percentile"]

SHARES: Final = (0.5, 0.9, 0.99, 1.0)
"""Of rows, whose lengths are told."""
_MOST_EXAMPLES: Final = 3


@dataclass
class Checked:
    """What was found.

    Attributes:
        rows: How many there are.
        wrong: Rows that training refuses.
        odd: Rows that it takes, and that are probably not meant: place and words.
        tokens: Of each row that can be rendered, before anything is cut; too long ones that are refused among them.
        kept_tokens: Of all, afterwards.
        learned_tokens: Those that are learned; 0 for a task with labels.
        fates: What becomes of rows, in words.
        labels: Rows of each label, by its name.
        scores: Of a regression.
        examples: The first rows, with place and rendered text.
    """

    rows: int = 0
    wrong: list[DataError] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    kept_tokens: int = 0
    learned_tokens: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)
    examples: list[tuple[str, Shown]] = field(default_factory=list)


def check_data(section: DataSection, task: TaskSection, tokenizer: Any) -> Checked:
    """Read every row as training does, and go on after those that it refuses.

    Args:
        section: Where the rows are.
        task: What is to be learned of them; its template as text.
        tokenizer: The model's.

    Raises:
        DataError: The source as a whole cannot be read.
    """
    found, at_work = Checked(), worker_task(task)
    for place, row in read_rows(section):
        found.rows += 1
        try:
            if isinstance(row, DataError):
                raise row
            example = example_of(row, place, section, task)
            shown = at_work.shown(example, tokenizer)
            found.tokens.append(shown.tokens)
            encoded = list(at_work.encode(example, tokenizer))
        except DataError as error:
            found.wrong.append(error)
            continue
        _count(found, example, shown, encoded, task)
        found.odd += ((place, words) for words in _odd(example, encoded, tokenizer))
        if len(found.examples) < _MOST_EXAMPLES:
            found.examples.append((place, shown))
    if not found.rows:
        raise DataError("there are no rows", place=section.source, remedy="training needs at least one example")
    return found


def _count(found: Checked, example: Example, shown: Shown, encoded: Sequence[Encoded], task: TaskSection) -> None:
    kept = sum(len(one.ids) for one in encoded)
    found.kept_tokens += kept
    found.fates[_fate(shown, encoded, kept)] += 1
    if example.target is None:
        found.learned_tokens += sum(one.weight for one in encoded)
    elif isinstance(example.target, int):
        found.labels[task.labels[example.target]] += 1
    elif isinstance(example.target, float):
        found.scores.append(example.target)


def _fate(shown: Shown, encoded: Sequence[Encoded], kept: int) -> str:
    if not encoded:
        return "left out"
    if len(encoded) > 1:
        return "cut into pieces"
    if kept == shown.tokens:
        return "whole"
    return "cut" if shown.turns == len(encoded[0].spans) or encoded[0].target is not None else "cut, with answers lost"


def _odd(example: Example, encoded: Sequence[Encoded], tokenizer: Any) -> Iterator[str]:
    if example.messages and encoded and encoded[-1].ids[-1] not in tokenizer.all_special_ids:
        yield "no special token ends the answer: a model does not learn where to stop"


def percentile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least this share of the values does not exceed.

    Example:
        >>> percentile([5, 1, 4, 2, 3], 0.5), percentile([7], 0.99)
        (3, 7)
    """
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


def as_numbers(found: Checked) -> Mapping[str, Any]:
    """What was found, for a machine."""
    return {
        "rows": found.rows,
        "wrong": [error.one_line() for error in found.wrong],
        "odd": [f"{place}: {words}" for place, words in found.odd],
        "tokens": {str(share): percentile(found.tokens, share) for share in SHARES if found.tokens},
        "kept_tokens": found.kept_tokens,
        "learned_tokens": found.learned_tokens,
        "fates": dict(found.fates),
        "labels": dict(found.labels),
        "examples": [{"place": place, "pieces": shown.pieces} for place, shown in found.examples],
    }
