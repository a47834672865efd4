# SPDX-License-Identifier: Apache-2.0
"""Durable state of a run: what decides the model is here before anybody is told.

SQLite in WAL mode with full synchronisation: what `commit` returned from survives a power cut. Large things (updates,
published states, the exact state) are files, flushed and renamed before their row is written. Another engine is another
implementation of `Ledger`: PostgreSQL is in `coordinator.store.postgres`, and `coordinator.store.places` says which one
a run has."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from coordinator.store.rows import EventRow, RoundRow, UpdateRow
from coordinator.store.tables import Table, TableLedger
from fedcore.errors import RunError, StorageError
from fedcore.round.measurement import Measurement
from fedcore.round.plan import Plan, StateObject

__all__ = [
    "SCHEMA",
    "VERSION",
    "EventRow",
    "Ledger",
    "LedgerReader",
    "RoundRow",
    "SqliteLedger",
    "UpdateRow",
    "begin_life",
]

T = TypeVar("T")
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


class SqliteLedger(TableLedger):
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

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.DatabaseError as error:
            if "full" in str(error):
                raise StorageError(
                    f"the ledger cannot be written: {error}", place=str(self._path), remedy="free space there"
                ) from None
            raise RunError(f"the ledger cannot be used: {error}", place=str(self._path)) from None

    def _write(self, work: Callable[[], T]) -> T:
        if self._within():
            return work()
        self._execute("BEGIN IMMEDIATE")
        try:
            done = work()
            self._execute("COMMIT")
        except BaseException:
            # On a full disk SQLite has done so itself.
            if self._within():
                self._execute("ROLLBACK")
            raise
        return done

    def _within(self) -> bool:
        return self._db.in_transaction

    def _read(self, work: Callable[[], T]) -> T:
        return work()

    def _put(self, table: Table, key: tuple[object, ...], value: bytes, *, replace: bool) -> bool:
        columns, verb = ", ".join((*table.keys, table.value)), "REPLACE" if replace else "IGNORE"
        marks = ", ".join("?" for _ in (*key, value))
        statement = f"INSERT OR {verb} INTO {table.name} ({columns}) VALUES ({marks})"  # noqa: S608
        return self._execute(statement, (*key, value)).rowcount == 1

    def _drop(self, table: Table, key: tuple[object, ...]) -> None:
        self._execute(f"DELETE FROM {table.name} WHERE {_where(table.keys)}", key)  # noqa: S608

    def _find(self, table: Table, key: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        given, order = table.keys[: len(key)], ", ".join(table.keys)
        columns = ", ".join((*table.keys[len(key) :], table.value))
        statement = f"SELECT {columns} FROM {table.name} WHERE {_where(given)} ORDER BY {order}"  # noqa: S608
        return self._execute(statement, key).fetchall()

    def _append(self, lines: Iterable[tuple[float, str, str, str, int]], after: int | None = None) -> None:
        for at, kind, node, text, server_round in lines:
            # Without a number it is the next one.
            number = None if after is None else after + 1
            after = number
            self._execute(
                "INSERT INTO events (rowid, at, kind, node, text, round) VALUES (?, ?, ?, ?, ?, ?)",
                (number, at, kind, node, text, server_round),
            )

    def _lines(self, after: int, most: int, *, newest: bool) -> list[EventRow]:
        order = "number DESC" if newest else "number"
        statement = (
            f"SELECT rowid AS number, at, kind, node, round, text FROM events WHERE rowid > ? ORDER BY {order} LIMIT ?"  # noqa: S608
        )
        return [EventRow(*row) for row in self._execute(statement, (after, most))]

    def _counted(self, kind: str) -> list[tuple[str, int]]:
        statement = "SELECT node, COUNT(*) FROM events WHERE kind = ? GROUP BY node ORDER BY node"
        return self._execute(statement, (kind,)).fetchall()

    def _distinct(self) -> list[tuple[float, str, str, str, int]]:
        statement = (
            "SELECT MAX(at), kind, node, text, COUNT(*) FROM events GROUP BY kind, node, text ORDER BY MAX(rowid)"
        )
        return self._execute(statement).fetchall()


class LedgerReader(SqliteLedger):
    """A ledger to look at; one moment of it, however long that takes. Close it soon: it keeps the writer's log from
    being tidied.

    Args:
        path: The ledger's file.
        patience_seconds: For a writer that is at work.

    Raises:
        RunError: It is not there, or cannot be read.
    """

    def __init__(self, path: Path, patience_seconds: float = 2.0) -> None:
        self._path = path
        if not path.is_file():
            raise RunError("there is no ledger", place=str(path))
        log = path.with_name(path.name + "-wal")
        # Without a log everything is in the file itself. Opened like this SQLite makes no files beside it, which might
        # then be another user's than the coordinator's.
        how = "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"
        uri = f"{path.absolute().as_uri()}?{how}"
        try:
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=patience_seconds)
            self._db.execute("BEGIN")
        except sqlite3.Error as error:
            raise RunError(f"the ledger cannot be opened: {error}", place=str(path)) from None

    def __enter__(self) -> LedgerReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _where(columns: tuple[str, ...]) -> str:
    return " AND ".join(f"{column} = ?" for column in columns) or "TRUE"


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
