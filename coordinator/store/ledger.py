# SPDX-License-Identifier: Apache-2.0
"""Durable state of a run: what decides the model is here before anybody is told.

SQLite in WAL mode with full synchronisation: what `commit` returned from survives a power cut. Large things (updates,
published states, the exact state) are files, flushed and renamed before their row is written. Another engine is another
implementation of `Ledger`."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from coordinator.store.rows import EventRow, RoundRow, UpdateRow
from fedcore.errors import RunError, StorageError
from fedcore.fields.prepared import prepared
from fedcore.round.measurement import Measurement
from fedcore.round.plan import ObjectKind, Plan, StateObject

__all__ = [
    "SCHEMA",
    "VERSION",
    "EventRow",
    "Ledger",
    "RoundRow",
    "SqliteLedger",
    "UpdateRow",
    "begin_life",
    "read_events",
]

T = TypeVar("T")
# As numbers in the column `whole`.
_KINDS: Final[tuple[ObjectKind, ...]] = ("difference", "whole", "snapshot")
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS plans (round INTEGER PRIMARY KEY, plan BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS updates (
    round INTEGER NOT NULL, node TEXT NOT NULL, row BLOB NOT NULL, PRIMARY KEY (round, node)
);
CREATE TABLE IF NOT EXISTS published (version INTEGER NOT NULL, whole INTEGER NOT NULL, object BLOB NOT NULL,
    PRIMARY KEY (version, whole));
CREATE TABLE IF NOT EXISTS rounds (round INTEGER PRIMARY KEY, row BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS measurements (version INTEGER NOT NULL, node TEXT NOT NULL, row BLOB NOT NULL,
    PRIMARY KEY (version, node));
CREATE TABLE IF NOT EXISTS events (at REAL NOT NULL, kind TEXT NOT NULL, node TEXT NOT NULL, text TEXT NOT NULL,
    round INTEGER NOT NULL DEFAULT 0);
"""
VERSION: Final = 4
"""Of the schema and of what rows hold; 0 where nobody wrote it down, which fedkrso 0.1 did not."""


class Ledger(Protocol):
    """What a coordinator remembers. Every `put` is durable when it returns; repeating it is harmless."""

    def put_fact(self, name: str, value: object) -> None:
        """Keep a named value of the run."""
        ...

    def fact(self, name: str, kind: type[T]) -> T | None:
        """A named value, or None."""
        ...

    def put_plan(self, plan: Plan) -> None:
        """Keep the plan of a round; a round that opens again replaces it."""
        ...

    def plan(self, server_round: int) -> Plan | None:
        """The plan of a round, or None."""
        ...

    def put_update(self, row: UpdateRow) -> bool:
        """Keep an update. False, and nothing changes, if this node's update for the round is already there."""
        ...

    def update(self, server_round: int, node: str) -> UpdateRow | None:
        """A node's update for a round, or None."""
        ...

    def updates(self, server_round: int) -> list[UpdateRow]:
        """A round's updates, by node."""
        ...

    def put_measurement(self, node: str, measurement: Measurement) -> None:
        """Keep what a node measured of the run's last state; the first word counts."""
        ...

    def measurements(self, version: int) -> dict[str, Measurement]:
        """What was kept of a version, by node."""
        ...

    def put_published(self, objects: list[StateObject], row: RoundRow) -> None:
        """Keep a round's published objects and its row, both or neither."""
        ...

    def put_objects(self, objects: list[StateObject]) -> None:
        """Keep published objects that are no round's published state."""
        ...

    def drop_objects(self, objects: list[StateObject]) -> None:
        """Forget published objects, all of them or none."""
        ...

    def published_states(self) -> list[StateObject]:
        """All published objects, oldest first."""
        ...

    def put_round(self, row: RoundRow) -> None:
        """Replace a round's row (its evaluation came later)."""
        ...

    def rounds(self) -> list[RoundRow]:
        """Rows of published rounds."""
        ...

    def note(self, at: float, kind: str, node: str, text: str, server_round: int = 0) -> None:
        """Add to the event log."""
        ...

    def put_command(self, facts: Mapping[str, object], at: float, node: str, text: str, server_round: int) -> None:
        """Keep what an operator's command changed, and its line in the event log, both or neither."""
        ...

    def events(self) -> list[tuple[float, str, str, str]]:
        """The event log, oldest first."""
        ...

    def counts(self, kind: str) -> dict[str, int]:
        """How many events of a kind each node has."""
        ...


class SqliteLedger:
    """The default ledger: one file in the run's folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._check_version()
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            # First: tables without it, left by a kill in between, would be taken for those of 0.1.
            self._db.execute(f"PRAGMA user_version={VERSION}")
            self._db.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise RunError(f"the ledger cannot be opened: {error}", place=str(path)) from None

    def _check_version(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        tables = self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        if tables and version != VERSION:
            self._db.close()
            wrote = "fedkrso 0.1" if version == 0 else f"another version of fedkrso (format {version})"
            raise RunError(
                f"the ledger is of {wrote}, this program reads format {VERSION}",
                place=str(self._path),
                remedy="go on with the version that began the run, or begin a new one",
            )

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.DatabaseError as error:
            if "full" in str(error):
                raise StorageError(
                    f"the ledger cannot be written: {error}", place=str(self._path), remedy="free space there"
                ) from None
            raise RunError(f"the ledger cannot be used: {error}", place=str(self._path)) from None

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """All that is written within, or nothing."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            self._execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def put_fact(self, name: str, value: object) -> None:
        """See `Ledger`."""
        self._execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, msgspec.msgpack.encode(value)))

    def fact(self, name: str, kind: type[T]) -> T | None:
        """See `Ledger`."""
        row = self._execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=kind)

    def put_plan(self, plan: Plan) -> None:
        """See `Ledger`."""
        self._execute("INSERT OR REPLACE INTO plans VALUES (?, ?)", (plan.round, msgspec.msgpack.encode(plan)))

    def plan(self, server_round: int) -> Plan | None:
        """See `Ledger`."""
        row = self._execute("SELECT plan FROM plans WHERE round = ?", (server_round,)).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=prepared(Plan))

    def put_update(self, row: UpdateRow) -> bool:
        """See `Ledger`."""
        done = self._execute(
            "INSERT OR IGNORE INTO updates VALUES (?, ?, ?)",
            (row.header.round, row.header.node, msgspec.msgpack.encode(row)),
        )
        return done.rowcount == 1

    def update(self, server_round: int, node: str) -> UpdateRow | None:
        """See `Ledger`."""
        row = self._execute("SELECT row FROM updates WHERE round = ? AND node = ?", (server_round, node)).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=UpdateRow)

    def updates(self, server_round: int) -> list[UpdateRow]:
        """See `Ledger`."""
        rows = self._execute("SELECT row FROM updates WHERE round = ? ORDER BY node", (server_round,))
        return [msgspec.msgpack.decode(row[0], type=UpdateRow) for row in rows]

    def put_measurement(self, node: str, measurement: Measurement) -> None:
        """See `Ledger`."""
        values = measurement.version, node, msgspec.msgpack.encode(measurement)
        self._execute("INSERT OR IGNORE INTO measurements VALUES (?, ?, ?)", values)

    def measurements(self, version: int) -> dict[str, Measurement]:
        """See `Ledger`."""
        rows = self._execute("SELECT node, row FROM measurements WHERE version = ? ORDER BY node", (version,))
        return {node: msgspec.msgpack.decode(row, type=Measurement) for node, row in rows}

    def put_published(self, objects: list[StateObject], row: RoundRow) -> None:
        """See `Ledger`."""
        with self._together():
            self._put(objects)
            self.put_round(row)

    def put_objects(self, objects: list[StateObject]) -> None:
        """See `Ledger`."""
        with self._together():
            self._put(objects)

    def drop_objects(self, objects: list[StateObject]) -> None:
        """See `Ledger`."""
        with self._together():
            for obj in objects:
                self._execute(
                    "DELETE FROM published WHERE version = ? AND whole = ?", (obj.version, _KINDS.index(obj.kind))
                )

    def _put(self, objects: list[StateObject]) -> None:
        for obj in objects:
            key = (obj.version, _KINDS.index(obj.kind), msgspec.msgpack.encode(obj))
            self._execute("INSERT OR REPLACE INTO published VALUES (?, ?, ?)", key)

    def published_states(self) -> list[StateObject]:
        """See `Ledger`."""
        rows = self._execute("SELECT object FROM published ORDER BY version, whole")
        return [msgspec.msgpack.decode(row[0], type=StateObject) for row in rows]

    def put_round(self, row: RoundRow) -> None:
        """See `Ledger`."""
        self._execute("INSERT OR REPLACE INTO rounds VALUES (?, ?)", (row.round, msgspec.msgpack.encode(row)))

    def rounds(self) -> list[RoundRow]:
        """See `Ledger`."""
        rows = self._execute("SELECT row FROM rounds ORDER BY round")
        return [msgspec.msgpack.decode(row[0], type=RoundRow) for row in rows]

    def note(self, at: float, kind: str, node: str, text: str, server_round: int = 0) -> None:
        """See `Ledger`."""
        self._execute(
            "INSERT INTO events (at, kind, node, text, round) VALUES (?, ?, ?, ?, ?)",
            (at, kind, node, text, server_round),
        )

    def put_command(self, facts: Mapping[str, object], at: float, node: str, text: str, server_round: int) -> None:
        """See `Ledger`."""
        with self._together():
            for name, value in facts.items():
                self.put_fact(name, value)
            self.note(at, "command", node, text, server_round)

    def events(self) -> list[tuple[float, str, str, str]]:
        """See `Ledger`."""
        return list(self._execute("SELECT at, kind, node, text FROM events ORDER BY rowid"))

    def counts(self, kind: str) -> dict[str, int]:
        """See `Ledger`."""
        return dict(
            self._execute("SELECT node, COUNT(*) FROM events WHERE kind = ? GROUP BY node ORDER BY node", (kind,))
        )


def begin_life(ledger: Ledger, make_id: Callable[[], str] = lambda: secrets.token_hex(16)) -> tuple[str, int]:
    """A coordinator starts, for the first time or again.

    Args:
        ledger: The run's.
        make_id: Makes an id that no other run has.

    Returns:
        The run's id, which tells it from every other of its name; and which start of it this is.
    """
    run_id = ledger.fact("run_id", str)
    if run_id is None:
        run_id = make_id()
        ledger.put_fact("run_id", run_id)
    start = (ledger.fact("start", int) or 0) + 1
    ledger.put_fact("start", start)
    return run_id, start


def read_events(path: Path, after: int, most: int) -> list[EventRow]:
    """Lines of a ledger's event log, oldest first, beside a coordinator that goes on writing it.

    Args:
        path: The ledger's file.
        after: Number of a line; what came later is wanted. 0: the newest lines.
        most: How many at most.

    Raises:
        RunError: There is no ledger, or it cannot be read.
    """
    order = "number" if after else "number DESC"
    statement = (
        f"SELECT rowid AS number, at, kind, node, round, text FROM events WHERE rowid > ? ORDER BY {order} LIMIT ?"  # noqa: S608
    )
    try:
        # Opened for this alone: a connection serves one thread, and one that stays open keeps the log from being
        # tidied.
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)) as db:
            rows = [EventRow(*row) for row in db.execute(statement, (after, most))]
    except sqlite3.Error as error:
        raise RunError(f"the ledger cannot be read: {error}", place=str(path)) from None
    return sorted(rows, key=lambda row: row.number)
