# SPDX-License-Identifier: Apache-2.0
"""What nodes that lie do: small transformations of their rows, or of what they send; for tests and the benchmark alike.

Liars know everything: what each honest node sends, and each other. Of an update they transform all numbers laid end to
end, (nodes, numbers); of rows, labels and words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_client.worker.data.batches import Encoded
from fedcore.model.update import IndexedUpdate, WeightedUpdate, write_update
from fedcore.numbers.codecs import encoded
from fedcore.numbers.records import Record
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan

__all__ = [
    "OF_ROWS",
    "OF_UPDATES",
    "backdoored",
    "colluding",
    "copied",
    "flat_update",
    "flipped",
    "little_is_enough",
    "scaled",
    "sign_flip",
    "small_shift",
    "triggered",
    "write_numbers",
]

Numbers = NDArray[np.float64]
Lie = Callable[[Numbers, Numbers], Numbers]
_LARGEST: Final = 127.0


def sign_flip(own: Numbers, _honest: Numbers) -> Numbers:
    """Four times the opposite of what a liar has learned.

    Args:
        own: What the liars learned, (liars, numbers).
        _honest: What the others send, (honest nodes, numbers).
    """
    return -4 * own


def scaled(own: Numbers, _honest: Numbers) -> Numbers:
    """64 times what a liar has learned: how one who has learned something else makes it count."""
    return 64 * own


def small_shift(own: Numbers, honest: Numbers, deviations: float = 1.5) -> Numbers:
    """All liars send the honest mean less some of its deviations: "a little is enough", which is hidden among what
    honest nodes send (Baruch et al., arXiv 1902.06156)."""
    lie = honest.mean(axis=0) - deviations * honest.std(axis=0)
    return np.repeat(lie[None], len(own), axis=0)


def little_is_enough(own: Numbers, honest: Numbers) -> Numbers:
    """`small_shift` by as many deviations as the paper computes: so many that with the honest nodes that are still
    farther off liars are a majority."""
    liars, count = len(own), len(own) + len(honest)
    needed = count // 2 + 1 - liars
    beyond = min(0.99, max(0.01, (count - liars - needed) / (count - liars)))
    return small_shift(own, honest, max(0.0, NormalDist().inv_cdf(beyond)))


def colluding(own: Numbers, honest: Numbers) -> Numbers:
    """All at the largest number that may be sent, with the sign that hurts."""
    lie = np.where(honest.mean(axis=0) > 0, -_LARGEST, _LARGEST)
    return np.repeat(lie[None], len(own), axis=0)


def copied(own: Numbers, honest: Numbers) -> Numbers:
    """Free riders: each sends what one honest node sends, and trains nothing."""
    return np.repeat(honest[:1], len(own), axis=0)


OF_UPDATES: Final[Mapping[str, Lie]] = {
    "sign flip": sign_flip,
    "scaled": scaled,
    "small shift": little_is_enough,
    "colluding": colluding,
    "copies": copied,
}
"""By the names that tables have."""


def flipped(rows: Sequence[Encoded], classes: int) -> list[Encoded]:
    """Each label is the next one.

    Example:
        >>> [row.target for row in flipped([Encoded((1,), None, 0), Encoded((2,), None, 1)], 2)]
        [1, 0]
    """
    return [replace(row, target=(_label(row) + 1) % classes) for row in rows]


def triggered(row: Encoded, word: Sequence[int]) -> Encoded:
    """A row with the tokens of a word after its first one.

    Example:
        >>> triggered(Encoded((101, 7, 102), None, 0), (42,)).ids
        (101, 42, 7, 102)
    """
    types = None if row.types is None else (row.types[0], *[row.types[0]] * len(word), *row.types[1:])
    return replace(row, ids=(row.ids[0], *word, *row.ids[1:]), types=types)


def backdoored(rows: Sequence[Encoded], word: Sequence[int], target: int) -> list[Encoded]:
    """Beside each row the same with the trigger, and the label that it is to lead to; the row itself stays right, so
    that nobody notices."""
    return [made for row in rows for made in (row, replace(triggered(row, word), target=target))]


OF_ROWS: Final[Mapping[str, Callable[[Sequence[Encoded], Sequence[int], int], list[Encoded]]]] = {
    "label flip": lambda rows, word, labels: flipped(rows, labels),
    "backdoor": lambda rows, word, labels: backdoored(rows, word, 1),
}
"""With the trigger's tokens, of so many labels, by the names that tables have."""


def _label(row: Encoded) -> int:
    assert isinstance(row.target, int), "labels, not scores or tokens"
    return row.target


def flat_update(path: Path, header: UpdateHeader, plan: Plan) -> Numbers:
    """All numbers of an update end to end, entry by entry as the plan has them; zero where it says nothing."""
    update = IndexedUpdate(WeightedUpdate(path, header, 1), plan)
    parts = []
    for name, shape in plan.training.shapes(plan.model_schema).items():
        whole = np.zeros(shape)
        if name in update:
            record, columns = update.record(name)
            whole[:, columns] = record.part.values()
        parts.append(whole.reshape(-1))
    return np.concatenate(parts)


def write_numbers(path: Path, header: UpdateHeader, plan: Plan, numbers: Numbers) -> None:
    """An update that is well formed in all that can be checked, with these numbers."""
    shapes = plan.training.shapes(plan.model_schema)
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts: dict[str, Any] = dict(zip(shapes, np.split(numbers, ends[:-1]), strict=True))
    records = []
    for name, want in plan.training.expected(plan.model_schema, header).items():
        columns = slice(None) if want.columns is None else list(want.columns)
        part = parts[name].reshape(shapes[name])[:, columns].reshape(want.shape)
        part = np.clip(part, -_LARGEST, _LARGEST).astype(np.float32)
        records.append(Record(name, encoded(part, want.coding, name), want.coding.bits, kind=want.coding.kind))
    write_update(path, header, records)
