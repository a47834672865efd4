# SPDX-License-Identifier: Apache-2.0
"""Durable state of a run: what decides the model is here before anybody is told.

SQLite in WAL mode with full synchronisation: what `commit` returned from survives a power cut. Large things (updates, outcomes, the
exact state) are files, flushed and renamed before their row is written. Another engine is another implementation of `Ledger`.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from fedcore.errors import RunError
from fedcore.plan import OutcomeObject, Plan
from fedcore.update import UpdateHeader

__all__ = ["Ledger", "RoundRow", "SqliteLedger", "UpdateRow"]

T = TypeVar("T")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS plans (round INTEGER PRIMARY KEY, plan BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS updates (
    round INTEGER NOT NULL, node TEXT NOT NULL, row BLOB NOT NULL, PRIMARY KEY (round, node)
);
CREATE TABLE IF NOT EXISTS outcomes (version INTEGER NOT NULL, whole INTEGER NOT NULL, object BLOB NOT NULL,
    PRIMARY KEY (version, whole));
CREATE TABLE IF NOT EXISTS rounds (round INTEGER PRIMARY KEY, row BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS events (at REAL NOT NULL, kind TEXT NOT NULL, node TEXT NOT NULL, text TEXT NOT NULL);
"""


class UpdateRow(msgspec.Struct, frozen=True):
    """A committed update: its transfer, its file within the run's folder, and what it says about itself."""

    transfer: str
    file: str
    size_bytes: int
    header: UpdateHeader


class RoundRow(msgspec.Struct, frozen=True):
    """What a round came to. Accuracy and loss are of the outcome on held-out data; None where it is not measured."""

    round: int
    participants: tuple[str, ...]
    uplink_bytes: int
    downlink_bytes: int
    seconds: float
    train_loss: float
    accuracy: float | None = None
    loss: float | None = None
    metrics: dict[str, float] = {}


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

    def updates(self, server_round: int) -> list[UpdateRow]:
        """A round's updates, by node."""
        ...

    def put_outcome(self, objects: list[OutcomeObject], row: RoundRow) -> None:
        """Keep a round's published objects and its row, both or neither."""
        ...

    def outcomes(self) -> list[OutcomeObject]:
        """All published objects, oldest first."""
        ...

    def put_round(self, row: RoundRow) -> None:
        """Replace a round's row (its evaluation came later)."""
        ...

    def rounds(self) -> list[RoundRow]:
        """Rows of published rounds."""
        ...

    def note(self, at: float, kind: str, node: str, text: str) -> None:
        """Add to the event log."""
        ...

    def events(self) -> list[tuple[float, str, str, str]]:
        """The event log, oldest first."""
        ...


class SqliteLedger:
    """The default ledger: one file in the run's folder."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise RunError(f"the ledger cannot be opened: {error}", place=str(path)) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def put_fact(self, name: str, value: object) -> None:
        """See `Ledger`."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, msgspec.msgpack.encode(value)))

    def fact(self, name: str, kind: type[T]) -> T | None:
        """See `Ledger`."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=kind)

    def put_plan(self, plan: Plan) -> None:
        """See `Ledger`."""
        self._db.execute("INSERT OR REPLACE INTO plans VALUES (?, ?)", (plan.round, msgspec.msgpack.encode(plan)))

    def plan(self, server_round: int) -> Plan | None:
        """See `Ledger`."""
        row = self._db.execute("SELECT plan FROM plans WHERE round = ?", (server_round,)).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=Plan)

    def put_update(self, row: UpdateRow) -> bool:
        """See `Ledger`."""
        done = self._db.execute(
            "INSERT OR IGNORE INTO updates VALUES (?, ?, ?)", (row.header.round, row.header.node, msgspec.msgpack.encode(row))
        )
        return done.rowcount == 1

    def updates(self, server_round: int) -> list[UpdateRow]:
        """See `Ledger`."""
        rows = self._db.execute("SELECT row FROM updates WHERE round = ? ORDER BY node", (server_round,))
        return [msgspec.msgpack.decode(row[0], type=UpdateRow) for row in rows]

    def put_outcome(self, objects: list[OutcomeObject], row: RoundRow) -> None:
        """See `Ledger`."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for obj in objects:
                key = (obj.version, int(obj.base_version is None), msgspec.msgpack.encode(obj))
                self._db.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", key)
            self.put_round(row)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def outcomes(self) -> list[OutcomeObject]:
        """See `Ledger`."""
        rows = self._db.execute("SELECT object FROM outcomes ORDER BY version, whole")
        return [msgspec.msgpack.decode(row[0], type=OutcomeObject) for row in rows]

    def put_round(self, row: RoundRow) -> None:
        """See `Ledger`."""
        self._db.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?)", (row.round, msgspec.msgpack.encode(row)))

    def rounds(self) -> list[RoundRow]:
        """See `Ledger`."""
        rows = self._db.execute("SELECT row FROM rounds ORDER BY round")
        return [msgspec.msgpack.decode(row[0], type=RoundRow) for row in rows]

    def note(self, at: float, kind: str, node: str, text: str) -> None:
        """See `Ledger`."""
        self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (at, kind, node, text))

    def events(self) -> list[tuple[float, str, str, str]]:
        """See `Ledger`."""
        return list(self._db.execute("SELECT at, kind, node, text FROM events ORDER BY rowid"))
