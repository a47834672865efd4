# SPDX-License-Identifier: Apache-2.0
"""What every ledger of ours does, whichever database it is in: rows as msgpack in a few tables with keys, and an event
log. A database is a handful of statements beside it (`coordinator.store.ledger`, `coordinator.store.postgres`)."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from coordinator.store.rows import EventRow, RoundRow, UpdateRow
from fedcore.fields.prepared import prepared
from fedcore.round.measurement import Measurement
from fedcore.round.plan import ObjectKind, Plan, StateObject

__all__ = ["TABLES", "Table", "TableLedger", "Telling", "told_to_nobody"]

T = TypeVar("T")
Telling = Callable[[str, bool], None]
"""Told in words that a database is away (True), and that it is back (False)."""
# As numbers in the column `whole`.
_KINDS: Final[tuple[ObjectKind, ...]] = ("difference", "whole", "snapshot")


@dataclass(frozen=True)
class Table:
    """A table of values by key.

    Attributes:
        name: Its name.
        keys: Columns that make a row the only one of its kind.
        value: The column with what is kept, as bytes.
    """

    name: str
    keys: tuple[str, ...]
    value: str


_FACTS: Final = Table("facts", ("name",), "value")
_PLANS: Final = Table("plans", ("round",), "plan")
_UPDATES: Final = Table("updates", ("round", "node"), "row")
_PUBLISHED: Final = Table("published", ("version", "whole"), "object")
_ROUNDS: Final = Table("rounds", ("round",), "row")
_MEASUREMENTS: Final = Table("measurements", ("version", "node"), "row")
TABLES: Final = (_FACTS, _PLANS, _UPDATES, _PUBLISHED, _ROUNDS, _MEASUREMENTS)
"""All but the event log."""


class TableLedger(abc.ABC):
    """A ledger (`coordinator.store.ledger.Ledger`) in tables. Whoever derives from it says how rows are put and found,
    and what makes several of them durable together."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of file or connection."""

    def give_up(self) -> None:  # noqa: B027 - a file is never waited for
        """Wait no longer for a database that is away, from any thread: whoever waits gets a `RunError`."""

    def drop_run(self) -> None:  # noqa: B027 - a file is its run's alone
        """Drop all that is kept, where other runs are kept beside it."""

    @abc.abstractmethod
    def _write(self, work: Callable[[], T]) -> T:
        """Have all that `work` puts, drops and appends, or nothing of it; durable when this returns. `work` may be done
        again where the first try came to nothing. Within another `_write` it is part of that one."""

    @abc.abstractmethod
    def _read(self, work: Callable[[], T]) -> T:
        """Have what `work` finds; it may be done again."""

    @abc.abstractmethod
    def _put(self, table: Table, key: tuple[object, ...], value: bytes, *, replace: bool) -> bool:
        """Put a row; False where one of its key is there and stays as it is."""

    @abc.abstractmethod
    def _drop(self, table: Table, key: tuple[object, ...]) -> None:
        """Drop a row, if it is there."""

    @abc.abstractmethod
    def _find(self, table: Table, key: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows whose first key columns are these, in the order of the others: the others, and the value."""

    @abc.abstractmethod
    def _append(self, lines: Iterable[tuple[float, str, str, str, int]], after: int | None = None) -> None:
        """Add lines to the event log: at, kind, node, text, round; numbered on from the last one, or from `after`."""

    @abc.abstractmethod
    def _lines(self, after: int, most: int, *, newest: bool) -> list[EventRow]:
        """Lines of the event log with a number above `after`, at most so many: the first of them, or the newest."""

    @abc.abstractmethod
    def _counted(self, kind: str) -> list[tuple[str, int]]:
        """Each node, and how many events of a kind it has; by node."""

    @abc.abstractmethod
    def _distinct(self) -> list[tuple[float, str, str, str, int]]:
        """The event log without what it repeats: last time, kind, node, text, how often; newest last."""

    def put_fact(self, name: str, value: object) -> None:
        """See `Ledger`."""
        self._keep(_FACTS, (name,), value)

    def fact(self, name: str, kind: type[T]) -> T | None:
        """See `Ledger`."""
        return next(iter(self._found(_FACTS, (name,), kind)), None)

    def put_plan(self, plan: Plan) -> None:
        """See `Ledger`."""
        self._keep(_PLANS, (plan.round,), plan)

    def plan(self, server_round: int) -> Plan | None:
        """See `Ledger`."""
        return next(iter(self._found(_PLANS, (server_round,), prepared(Plan))), None)

    def put_update(self, row: UpdateRow) -> bool:
        """See `Ledger`."""
        return self._keep(_UPDATES, (row.header.round, row.header.node), row, replace=False)

    def update(self, server_round: int, node: str) -> UpdateRow | None:
        """See `Ledger`."""
        return next(iter(self._found(_UPDATES, (server_round, node), UpdateRow)), None)

    def updates(self, server_round: int) -> list[UpdateRow]:
        """See `Ledger`."""
        return self._found(_UPDATES, (server_round,), UpdateRow)

    def put_measurement(self, node: str, measurement: Measurement) -> None:
        """See `Ledger`."""
        self._keep(_MEASUREMENTS, (measurement.version, node), measurement, replace=False)

    def measurements(self, version: int) -> dict[str, Measurement]:
        """See `Ledger`."""
        rows = self._read(lambda: self._find(_MEASUREMENTS, (version,)))
        return {node: msgspec.msgpack.decode(row, type=Measurement) for node, row in rows}

    def put_published(self, objects: list[StateObject], row: RoundRow) -> None:
        """See `Ledger`."""

        def both() -> None:
            self._keep_objects(objects)
            self.put_round(row)

        self._write(both)

    def put_objects(self, objects: list[StateObject]) -> None:
        """See `Ledger`."""
        self._write(lambda: self._keep_objects(objects))

    def _keep_objects(self, objects: list[StateObject]) -> None:
        for obj in objects:
            self._keep(_PUBLISHED, _key_of(obj), obj)

    def drop_objects(self, objects: list[StateObject]) -> None:
        """See `Ledger`."""

        def all_of_them() -> None:
            for obj in objects:
                self._drop(_PUBLISHED, _key_of(obj))

        self._write(all_of_them)

    def published_states(self) -> list[StateObject]:
        """See `Ledger`."""
        return self._found(_PUBLISHED, (), StateObject)

    def put_round(self, row: RoundRow) -> None:
        """See `Ledger`."""
        self._keep(_ROUNDS, (row.round,), row)

    def rounds(self) -> list[RoundRow]:
        """See `Ledger`."""
        return self._found(_ROUNDS, (), RoundRow)

    def note(self, at: float, kind: str, node: str, text: str, server_round: int = 0) -> None:
        """See `Ledger`."""
        self._write(lambda: self._append([(at, kind, node, text, server_round)]))

    def put_command(self, facts: Mapping[str, object], at: float, node: str, text: str, server_round: int) -> None:
        """See `Ledger`."""

        def both() -> None:
            for name, value in facts.items():
                self.put_fact(name, value)
            self.note(at, "command", node, text, server_round)

        self._write(both)

    def events(self) -> list[tuple[float, str, str, str]]:
        """See `Ledger`."""
        return [(row.at, row.kind, row.node, row.text) for row in self.lines(0, 2**62)]

    def lines(self, after: int, most: int) -> list[EventRow]:
        """Lines of the event log, oldest first.

        Args:
            after: Number of a line; what came later is wanted. 0: the newest lines.
            most: How many at most.
        """
        rows = self._read(lambda: self._lines(after, most, newest=not after))
        return sorted(rows, key=lambda row: row.number)

    def counts(self, kind: str) -> dict[str, int]:
        """See `Ledger`."""
        return dict(self._read(lambda: self._counted(kind)))

    def reasons(self) -> list[tuple[float, str, str, str, int]]:
        """The event log without what it repeats: (last time, kind, node, text, how often), newest last."""
        return self._read(self._distinct)

    def everything(self) -> Iterator[tuple[str, Sequence[tuple[Any, ...]]]]:
        """All that it holds, table by table, as it is kept: what another ledger takes with `take`."""
        for table in TABLES:
            yield table.name, self._read(lambda table=table: self._find(table))  # type: ignore[misc]
        lines = self._read(lambda: self._lines(0, 2**62, newest=False))
        yield "events", [(row.number, row.at, row.kind, row.node, row.text, row.round) for row in lines]

    def take(self, everything: Iterable[tuple[str, Sequence[tuple[Any, ...]]]]) -> None:
        """Take what another ledger held, all of it or nothing.

        Args:
            everything: As `everything` of that one gives it.
        """
        tables = {table.name: table for table in TABLES}
        given = [(name, list(rows)) for name, rows in everything]

        def all_of_it() -> None:
            for name, rows in given:
                for row in rows:
                    if name == "events":
                        self._append([row[1:]], after=row[0] - 1)
                    else:
                        self._put(tables[name], tuple(row[:-1]), row[-1], replace=True)

        self._write(all_of_it)

    def _keep(self, table: Table, key: tuple[object, ...], value: object, *, replace: bool = True) -> bool:
        data = msgspec.msgpack.encode(value)
        return self._write(lambda: self._put(table, key, data, replace=replace))

    def _found(self, table: Table, key: tuple[object, ...], kind: type[T]) -> list[T]:
        rows = self._read(lambda: self._find(table, key))
        return [msgspec.msgpack.decode(row[-1], type=kind) for row in rows]


def told_to_nobody(words: str, away: bool) -> None:
    """For ledgers that nobody waits for."""


def _key_of(obj: StateObject) -> tuple[int, int]:
    return obj.version, _KINDS.index(obj.kind)
