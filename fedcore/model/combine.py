# SPDX-License-Identifier: Apache-2.0
"""A round's updates by a rule that looks at what all participants say of a number (`fedcore.numbers.rules`), or by one
that looks at how far updates are from each other (`fedcore.numbers.choosing`).

A mean is a sum, which takes one update after the other. A median needs all of them at once, number by number, and they
are too many to be held: so one entry after the other is unpacked, each participant's part of it once, into a table on
disk (participants, rows x columns), which then is read block by block, the same stretch of every participant. In memory
are one record, one block of `BLOCK_NUMBERS` for all participants together, and the result, however many participants
there are; on disk 8 bytes for each number of the largest entry and participant, in a file without a name, so that a
killed coordinator leaves nothing behind and begins again with the same result.

A rule of whole updates reads them twice: all of them for their distances, and those that count for their mean. Where a
job puts updates into buckets, all of this is of the buckets' means; who is put with whom follows from the run's seed,
the round and the participants' names.

Who does not say a column of an entry (a subspace that it did not use, rows beyond its rank) says that nothing changed:
zero, in every entry. So nobody becomes a majority by claiming what few others have."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from io import RawIOBase
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import UpdateRefused
from fedcore.model.distances import Products
from fedcore.model.update import Columns, IndexedUpdate, WeightedUpdate
from fedcore.numbers.accumulator import MAX_EXAMPLES, MatrixEntry
from fedcore.numbers.choosing import Choosing, Distances
from fedcore.numbers.clip import Clip
from fedcore.numbers.rules import MEAN, Rule
from fedcore.round.plan import Plan

__all__ = ["BLOCK_NUMBERS", "Combined"]

BLOCK_NUMBERS: Final = 2**20
"""Numbers in a block, of all participants together: 8 MiB."""


class _Bucket(NamedTuple):
    """Updates that a rule takes for one, and what they weigh: together among buckets, and each within."""

    updates: Sequence[IndexedUpdate]
    weight: int
    weights: NDArray[np.int64]


class Combined:
    """What a rule makes of a round's updates.

    Args:
        updates: At least one, in any order; the table lies beside their files while an entry is combined.
        plan: The round's.
        rule: Says which numbers count.

    Raises:
        UpdateRefused: An update's file is not what was admitted any more, or weights exceed what exact sums allow.
    """

    def __init__(self, updates: Sequence[WeightedUpdate], plan: Plan, rule: Rule) -> None:
        self._shapes, self._rule = plan.training.shapes(plan.model_schema), rule
        self._folder = updates[0].path.parent
        weights = [update.weight if rule.weighted else 1 for update in updates]
        if min(weights) < 1 or sum(weights) > MAX_EXAMPLES:
            raise UpdateRefused(f"weights together are outside 1 to {MAX_EXAMPLES}", remedy="use uniform shares")
        drawn = sorted(zip(updates, weights, strict=True), key=lambda one: _lot(plan, one[0].header.node))
        groups = [drawn[start : start + rule.bucket] for start in range(0, len(drawn), rule.bucket)]
        self._buckets = [_bucket(group, plan, rule) for group in groups]

    def means(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each entry's numbers in units of 2**-32, as `RunningSum.means`; zero where no update has the entry.

        Raises:
            UpdateRefused: A record is not what was admitted any more.
        """
        buckets = self._buckets
        if isinstance(self._rule, Choosing):
            chosen = zip(buckets, self._rule.choose(self._distances()), strict=True)
            buckets = [bucket._replace(weight=weight) for bucket, weight in chosen if weight]
        weights = np.array([bucket.weight for bucket in buckets], np.int64)
        for name, shape in self._shapes.items():
            out = np.zeros(shape, np.int64)
            for stretch, values in self._blocks(name, shape, buckets):
                out.reshape(-1)[stretch] = self._rule.combine(values, weights)
            yield name, out

    def _distances(self) -> Distances:
        """Of all buckets to each other, over all entries."""
        products = Products(len(self._buckets))
        for name, shape in self._shapes.items():
            for _, values in self._blocks(name, shape, self._buckets):
                products.add(values)
        return products.distances()

    def _blocks(
        self, name: str, shape: tuple[int, int], buckets: Sequence[_Bucket]
    ) -> Iterator[tuple[slice, NDArray[np.int64]]]:
        """An entry's numbers stretch by stretch, each of all buckets: (buckets, numbers); none if no update has it."""
        updates = [update for bucket in buckets for update in bucket.updates]
        saying = [(index, update) for index, update in enumerate(updates) if name in update]
        if not saying:
            return
        numbers, width = math.prod(shape), max(1, BLOCK_NUMBERS // len(updates))
        with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
            table = _Table(file, len(updates), shape)
            for index, update in saying:
                record, columns = update.record(name)
                table.write(index, record.part, columns, update.clip)
            for start in range(0, numbers, width):
                stretch = slice(start, min(start + width, numbers))
                yield stretch, _put_together(table.read(stretch), buckets)


def _lot(plan: Plan, node: str) -> bytes:
    """What a round draws a participant's place by: whatever the order in which updates came."""
    return hashlib.sha256(f"fedkrso bucket 1/{plan.training.run_seed}/{plan.round}/{node}".encode()).digest()


def _bucket(drawn: Sequence[tuple[WeightedUpdate, int]], plan: Plan, rule: Rule) -> _Bucket:
    weights = np.array([weight for _, weight in drawn], np.int64)
    together = int(weights.sum()) if rule.weighted else 1
    return _Bucket([IndexedUpdate(update, plan) for update, _ in drawn], together, weights)


def _put_together(values: NDArray[np.int64], buckets: Sequence[_Bucket]) -> NDArray[np.int64]:
    """The means of buckets, half to even, from what their updates say."""
    if len(values) == len(buckets):
        return values
    together, start = np.empty((len(buckets), values.shape[1]), np.int64), 0
    for mean, bucket in zip(together, buckets, strict=True):
        some = values[start : start + len(bucket.updates)]
        mean[:] = MEAN.combine(some, bucket.weights)
        start += len(some)
    return together


class _Table:
    """What all participants say of an entry, as int64 on disk: (participants, rows x columns), zero until written.

    Args:
        file: Empty, unbuffered.
        participants: How many.
        shape: Of the entry.
    """

    def __init__(self, file: RawIOBase, participants: int, shape: tuple[int, int]) -> None:
        self._file, self._participants, self._shape = file, participants, shape
        # What is not written reads as zero, and takes no room where the file system has holes.
        file.truncate(8 * participants * shape[0] * shape[1])

    def write(self, participant: int, part: MatrixEntry, columns: Columns, clip: Clip | None) -> None:
        """Put down what a participant says of some columns, scaled down by its clip."""
        rows, width = self._shape
        step = max(1, BLOCK_NUMBERS // width)
        for start in range(0, rows, step):
            units = part.units(slice(start, min(start + step, rows)))
            units = units if clip is None else clip.of(units)
            if not isinstance(columns, slice) or columns != slice(None):
                units, said = np.zeros((len(units), width), np.int64), units
                units[:, columns] = said
            self._file.seek(8 * (participant * rows + start) * width)
            left = np.ascontiguousarray(units).data.cast("B")
            while left:
                left = left[self._file.write(left) :]

    def read(self, stretch: slice) -> NDArray[np.int64]:
        """The same numbers of all participants: (participants, numbers)."""
        values = np.empty((self._participants, stretch.stop - stretch.start), np.int64)
        numbers = self._shape[0] * self._shape[1]
        for participant, row in enumerate(values):
            self._file.seek(8 * (participant * numbers + stretch.start))
            left = row.data.cast("B")
            while left:
                left = left[self._file.readinto(left) :]
        return values
