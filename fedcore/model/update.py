# SPDX-License-Identifier: Apache-2.0
"""An update: one participant's accumulators and full tensors as a record file, and the checks before it may enter the
sum."""

from __future__ import annotations

import contextlib
import math
import reprlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedcore.errors import MalformedMessage, UpdateRefused
from fedcore.fields.checked import clean_text
from fedcore.numbers.accumulator import MAX_EXAMPLES, RunningSum, Share, squared_norm, within_bounds
from fedcore.numbers.clip import Clip
from fedcore.numbers.coding import Coding, Kind
from fedcore.numbers.records import Record, read_header, read_record, read_records, record_places, write_records
from fedcore.round.header import UPDATE_FORMAT, UpdateHeader
from fedcore.round.measurement import check_measurement
from fedcore.round.plan import Plan

__all__ = [
    "Adder",
    "CheckedUpdate",
    "Columns",
    "HandedOut",
    "IndexedUpdate",
    "WeightedUpdate",
    "add_updates",
    "check_update",
    "read_together",
    "write_update",
]

Columns = NDArray[np.intp] | slice
"""Of a record within its entry."""
_TOGETHER: Final = 16
_TOGETHER_NUMBERS: Final = 2**24
"""Of records that are in memory together, where they are several."""


def write_update(path: Path, header: UpdateHeader, records: Iterable[Record]) -> None:
    """Write an update file, whole or not at all."""
    write_records(path, msgspec.to_builtins(header), records)


@dataclass(frozen=True)
class CheckedUpdate:
    """An update that may enter the sum.

    Attributes:
        header: What it says about itself.
        squared: Sum of squares of all its numbers, accumulators and whole tensors, in units of 2**-64; exact.
    """

    header: UpdateHeader
    squared: int


@dataclass(frozen=True)
class WeightedUpdate:
    """A checked update with its part in a round.

    Attributes:
        path: Its file.
        header: What it says about itself.
        weight: Its share in the round's mean, from 1 up; what it claims is in the header.
        clip: Scales it down before it is added.
    """

    path: Path
    header: UpdateHeader
    weight: int
    clip: Clip | None = None


Adder = Callable[[Sequence[WeightedUpdate], Plan, RunningSum], None]
"""Adds updates to a round's exact sum, as `add_updates` does and to the same bits, whoever does the work."""


class HandedOut(list[WeightedUpdate]):
    """A round's updates, with who adds them up.

    Args:
        updates: In any order.
        adder: Who.
    """

    def __init__(self, updates: Iterable[WeightedUpdate], adder: Adder) -> None:
        super().__init__(updates)
        self.adder = adder


def check_update(path: Path, plan: Plan, run: str, node: str) -> CheckedUpdate:
    """Check an update whole, header and every record, against the plan and its sender.

    Raises:
        UpdateRefused: Not an update for this round, with values outside the plan's bounds or those of exact sums, or a
            record is missing, foreign, repeated, damaged, or has another shape or precision than the plan says.
    """
    header, squared, training = _read_header(path, plan, run, node), 0, plan.training
    for record, _ in _Records(path, plan, header).read():
        squared += squared_norm(record.part)
        if record.name in training.looked_at:
            training.look(record.part.values().tolist(), plan.task, header)
    return CheckedUpdate(header, squared)


def add_updates(updates: Iterable[WeightedUpdate], plan: Plan, total: RunningSum) -> None:
    """Add updates to a round's exact sum, checking each once more as it is read.

    Some are read side by side, so that what several say of an entry is added at once; in memory is one record of each
    of those.

    Args:
        updates: In any order.
        plan: The round's.
        total: Of the entries of the plan's updates.

    Raises:
        UpdateRefused: As `check_update`, or the weights exceed what exact sums allow. The sum is then of no more use.
    """
    left, together = iter(updates), read_together(plan)
    while some := list(islice(left, together)):
        for update in some:
            total.add_examples(update.weight)
        with contextlib.ExitStack() as files:
            reading = [
                (update, files.enter_context(contextlib.closing(_Records(update.path, plan, update.header).read())))
                for update in some
            ]
            while reading:
                # By name: files may have their records in any order.
                items = [next(records, None) for _, records in reading]
                found = dict[str, list[Share]]()
                for (update, _), item in zip(reading, items, strict=True):
                    if item is not None:
                        share = Share(item[0].part, update.weight, item[1], update.clip)
                        found.setdefault(item[0].name, []).append(share)
                reading = [one for one, item in zip(reading, items, strict=True) if item is not None]
                for name, shares in found.items():
                    total.add_together(name, shares)


def read_together(plan: Plan) -> int:
    """How many updates of a round are read side by side: fewer, the larger their largest record is."""
    largest = max(map(math.prod, plan.training.update_shapes(plan.model_schema).values()), default=1)
    return min(_TOGETHER, max(1, _TOGETHER_NUMBERS // largest))


def _read_header(path: Path, plan: Plan, run: str, node: str) -> UpdateHeader:
    try:
        header = msgspec.convert(read_header(path, UPDATE_FORMAT), UpdateHeader)
    except (MalformedMessage, msgspec.ValidationError) as error:
        raise UpdateRefused(f"not an update: {clean_text(str(error))}", place=node) from None
    expected = {"run": run, "run_id": plan.run_id, "round": plan.round, "node": node, "version": plan.version}
    for key, value in expected.items():
        if getattr(header, key) != value:
            raise UpdateRefused(
                f"{key} is {reprlib.repr(getattr(header, key))} where the plan has {value!r}", place=node
            )
    if not 1 <= header.examples <= MAX_EXAMPLES:
        raise UpdateRefused(f"{header.examples} examples is outside 1 to {MAX_EXAMPLES}", place=node)
    if header.measured is not None:
        check_measurement(header.measured, plan.evaluation, plan.version, node)
    return header


def _place_of(columns: tuple[int, ...]) -> Columns:
    """A slice adds several times faster than a list of columns; neighbours in order are the usual case."""
    found = np.asarray(columns, np.intp)
    contiguous = bool((np.diff(found) == 1).all())
    return slice(columns[0], columns[0] + len(columns)) if contiguous else found


class _Records:
    """The records of an update, against what the plan expects of it.

    Attributes:
        expected: By name, what each must be.
    """

    def __init__(self, path: Path, plan: Plan, header: UpdateHeader) -> None:
        self._path, self._node = path, header.node
        self.expected = plan.training.expected(plan.model_schema, header)
        # A few compressed bytes can claim a hundred million numbers: nothing larger than the plan's largest tensor is
        # unpacked.
        self._largest = max((math.prod(want.shape) for want in self.expected.values()), default=1)
        self._columns: dict[tuple[int, ...] | None, Columns] = {None: slice(None)}
        self._kinds: set[Kind] = {want.coding.kind for want in self.expected.values()} or {"integers"}

    def read(self) -> Generator[tuple[Record, Columns], None, None]:
        """Every record with its columns in the entry, one at a time, each as the plan says; at the end, that none was
        missing."""
        missing = set(self.expected)
        with self._named():
            for record in read_records(self._path, largest=self._largest, kinds=self._kinds):
                self._take(record.name, missing)
                yield record, self._checked(record)
        self._require_none(missing)

    def places(self) -> dict[str, int]:
        """Where in the file each record begins, once and none else; what they hold is not looked at."""
        found: dict[str, int] = {}
        missing = set(self.expected)
        with self._named():
            for name, place in record_places(self._path, largest=self._largest, kinds=self._kinds):
                self._take(name, missing)
                found[name] = place
        self._require_none(missing)
        return found

    def at(self, name: str, place: int) -> tuple[Record, Columns]:
        """The record of a name, which begins there, with its columns in the entry."""
        with self._named():
            record = read_record(self._path, place, largest=self._largest, kinds=self._kinds)
        if record.name != name:
            raise UpdateRefused("another tensor than before", place=f"{self._node}: {clean_text(name)}")
        return record, self._checked(record)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Damage of the file is the sender's."""
        try:
            yield
        except MalformedMessage as error:
            raise UpdateRefused(clean_text(str(error)), place=self._node) from None

    def _take(self, name: str, missing: set[str]) -> None:
        if name not in missing:
            place = f"{self._node}: {clean_text(name)}"
            raise UpdateRefused("a tensor that the plan does not have, or twice", place=place)
        missing.remove(name)

    def _require_none(self, missing: set[str]) -> None:
        if missing:
            raise UpdateRefused(f"{len(missing)} tensors are missing, first {min(missing)}", place=self._node)

    def _checked(self, record: Record) -> Columns:
        """The columns of a record that is what the plan says."""
        want, place = self.expected[record.name], f"{self._node}: {record.name}"
        if record.part.shape != want.shape or (record.kind, record.bits) != want.coding[:2] or record.difference:
            found = f"{'x'.join(map(str, record.part.shape))} with {Coding(record.kind, record.bits)}"
            wanted = f"{'x'.join(map(str, want.shape))} with {want.coding}"
            kind = " as a difference" if record.difference else ""
            raise UpdateRefused(f"{found}{kind} where the plan has {wanted}", place=place)
        if record.kind == "sparse" and (sent := np.count_nonzero(record.integers.q)) > (
            most := want.coding.kept(math.prod(want.shape))
        ):
            raise UpdateRefused(f"{sent} numbers where the plan has at most {most}", place=place)
        if not within_bounds(record.part):
            raise UpdateRefused("a value beyond 128, or a scale beyond what holds one", place=place)
        if want.columns not in self._columns:
            self._columns[want.columns] = _place_of(want.columns or ())
        return self._columns[want.columns]


class IndexedUpdate:
    """An update whose records are read by name, one at a time, in any order.

    Args:
        update: Whose file it is.
        plan: The round's.

    Raises:
        UpdateRefused: As `check_update`, but for what records hold: that is checked as each is read.
    """

    def __init__(self, update: WeightedUpdate, plan: Plan) -> None:
        self.weight, self.clip = update.weight, update.clip
        self._records = _Records(update.path, plan, update.header)
        self._places = self._records.places()

    def __contains__(self, name: str) -> bool:
        """Whether it says something of an entry."""
        return name in self._places

    def record(self, name: str) -> tuple[Record, Columns]:
        """The record of an entry that it has, with its columns there.

        Raises:
            UpdateRefused: It is not what the plan says.
        """
        return self._records.at(name, self._places[name])
