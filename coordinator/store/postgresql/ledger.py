# SPDX-License-Identifier: Apache-2.0
"""A run's ledger in PostgreSQL: many runs in one database, each written by one coordinator at a time.

Every change is one transaction, which also counts itself in the run's row, under the name that the coordinator's
present life has given itself there. So after a lost connection it is known whether the change that was under way is in
the database, it is made again if not, and a second coordinator, or a database that was set back to an earlier day, is
noticed before anything is written on top."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from coordinator.store.ledger import VERSION
from coordinator.store.places import Database
from coordinator.store.postgresql.database import Away, connect, in_our_words
from coordinator.store.rows import EventRow
from coordinator.store.tables import Table, TableLedger, Telling, told_to_nobody
from fedcore.errors import RunError

__all__ = ["PostgresLedger", "PostgresReader"]

T = TypeVar("T")
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
_SAY_AGAIN_SECONDS: Final = 60.0
_START_SECONDS, _START_PAUSE_SECONDS = 10.0, 0.5


class PostgresLedger(TableLedger):
    """A run's rows in a database.

    Args:
        database: Which, and which run in it (`begin_run` makes one).
        leads: Whether this is the run's coordinator: then nobody else may write, and a database that goes away is
            waited for, at the start for some seconds.
        tell: Told while it is waited for.

    Raises:
        RunError: The database cannot be reached, has no such run, or holds rows of another version.
    """

    def __init__(self, database: Database, *, leads: bool = False, tell: Telling = told_to_nobody) -> None:
        self._database, self._leads, self._tell = database, leads, tell
        self._writer, self._writes = secrets.token_hex(16) if leads else "", 0
        self._within, self._given_up = False, threading.Event()
        if leads:
            self._have_patience()
        with in_our_words(database), contextlib.ExitStack() as undone:
            self._db = undone.enter_context(contextlib.closing(connect(database)))
            self._id = self._looked_up()
            if leads:
                statement = "UPDATE fedkrso.runs SET writer = %s, writes = writes + 1 WHERE id = %s RETURNING writes"
                row = self._db.execute(statement, (self._writer, self._id)).fetchone()
                assert row is not None, "it was looked up"
                self._writes = row[0]
            undone.pop_all()

    def _have_patience(self) -> None:
        """Wait a while for a database that is just being started, as both are after a power cut."""
        until, told = time.monotonic() + _START_SECONDS, False
        while time.monotonic() < until:
            try:
                with in_our_words(self._database, waits=True):
                    connect(self._database).close()
                return
            except Away as away:
                if not told:
                    words = f"is waited for, for at most {_START_SECONDS:.0f} s: {away.words}"
                    self._tell(f"the database at {self._database.place} {words}", True)
                told = True
            if self._given_up.wait(_START_PAUSE_SECONDS):
                return

    def _looked_up(self) -> int:
        """The run's number in the database."""
        found, place = None, self._database.place
        if self._db.execute("SELECT to_regclass('fedkrso.runs')").fetchone() != (None,):
            statement = "SELECT id, format FROM fedkrso.runs WHERE key = %s"
            found = self._db.execute(statement, (self._database.key,)).fetchone()
        if found is None:
            remedy = "bring back the database that the run was begun in; ledger.json in the run's folder names it"
            raise RunError("the run is not in this database", place=place, remedy=remedy)
        if found[1] != VERSION:
            raise RunError(
                f"the ledger is of format {found[1]}, this program reads format {VERSION}",
                place=place,
                remedy="go on with the version that began the run, or begin a new one",
            )
        run: int = found[0]
        return run

    def drop_run(self) -> None:
        """Take all of the run out of the database."""
        with in_our_words(self._database):
            self._db.execute("DELETE FROM fedkrso.runs WHERE id = %s", (self._id,))

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def give_up(self) -> None:
        """See `TableLedger`."""
        self._given_up.set()

    def _write(self, work: Callable[[], T]) -> T:
        if self._within:
            return work()
        done: list[T] = []
        while True:
            try:
                with in_our_words(self._database, waits=self._leads), self._db.transaction():
                    self._within = True
                    if self._leads and not self._count():
                        return done[-1]
                    done.append(work())
                self._writes += self._leads
                return done[-1]
            except Away as away:
                self._within = False
                if self._came_back(away):
                    return done[-1]
            finally:
                self._within = False

    def _read(self, work: Callable[[], T]) -> T:
        if self._within:
            return work()
        while True:
            try:
                with in_our_words(self._database, waits=self._leads):
                    return work()
            except Away as away:
                self._came_back(away)

    def _count(self) -> bool:
        """Count this change; False where it is there already, and only the answer was lost.

        Raises:
            RunError: Somebody else has written.
        """
        statement = "UPDATE fedkrso.runs SET writes = writes + 1 WHERE id = %s AND writer = %s AND writes = %s"
        if self._db.execute(statement, (self._id, self._writer, self._writes)).rowcount == 1:
            return True
        # What was under way when the connection was lost has come through since.
        assert self._came_through(), "nobody else counts under this name"
        self._writes += 1
        return False

    def _came_through(self) -> bool:
        """Whether the change that was under way is in the database.

        Raises:
            RunError: Somebody else has written, or the database is not the one that it was.
        """
        place = self._database.place
        statement = "SELECT writer, writes FROM fedkrso.runs WHERE id = %s AND key = %s"
        found = self._db.execute(statement, (self._id, self._database.key)).fetchone()
        if found is not None and found[0] == self._writer and found[1] - self._writes in (0, 1):
            return bool(found[1] > self._writes)
        if found is not None and found[0] != self._writer and found[1] >= self._writes:
            remedy = "leave the run to that one: no two may lead it"
            raise RunError("another coordinator writes this run's ledger", place=place, remedy=remedy)
        missing = "the run" if found is None else f"{self._writes - found[1]} of the run's last changes"
        raise RunError(
            f"the database came back without {missing}",
            place=place,
            remedy="bring back the one that was written to: nodes were told that it keeps what they sent",
        )

    def _came_back(self, away: Away) -> bool:
        """Wait until the database is back; whether the change that was under way is in it."""
        began = said = time.monotonic()
        pause, place = _FIRST_PAUSE_SECONDS, self._database.place
        self._tell(f"the database at {place} is away, and is waited for: {away.words}", True)
        while True:
            if self._given_up.wait(pause):
                raise RunError("stopped while the database was away", place=place, remedy="resume when it is back")
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            try:
                self._db.close()
                with in_our_words(self._database, waits=True):
                    self._db = connect(self._database)
                    came = self._came_through()
                # Before anybody is told, who may write it down.
                self._writes += came
                break
            except Away as still:
                now = time.monotonic()
                if now - said >= _SAY_AGAIN_SECONDS:
                    said = now
                    self._tell(f"the database at {place} is away for {now - began:.0f} s: {still.words}", True)
        self._tell(f"the database at {place} is back after {time.monotonic() - began:.1f} s", False)
        return came

    def _put(self, table: Table, key: tuple[object, ...], value: bytes, *, replace: bool) -> bool:
        columns = ", ".join(("run", *table.keys, table.value))
        marks = ", ".join("%s" for _ in (self._id, *key, value))
        keys = ", ".join(("run", *table.keys))
        otherwise = f"DO UPDATE SET {table.value} = excluded.{table.value}" if replace else "DO NOTHING"
        statement = f"INSERT INTO fedkrso.{table.name} ({columns}) VALUES ({marks}) ON CONFLICT ({keys}) {otherwise}"  # noqa: S608
        return self._db.execute(statement, (self._id, *key, value)).rowcount == 1

    def _drop(self, table: Table, key: tuple[object, ...]) -> None:
        self._db.execute(f"DELETE FROM fedkrso.{table.name} WHERE {_where(table.keys)}", (self._id, *key))  # noqa: S608

    def _find(self, table: Table, key: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        given, order = table.keys[: len(key)], ", ".join(table.keys)
        columns = ", ".join((*table.keys[len(key) :], table.value))
        statement = f"SELECT {columns} FROM fedkrso.{table.name} WHERE {_where(given)} ORDER BY {order}"  # noqa: S608
        return self._db.execute(statement, (self._id, *key)).fetchall()

    def _append(self, lines: Iterable[tuple[float, str, str, str, int]], after: int | None = None) -> None:
        statement = "SELECT coalesce(max(number), 0) FROM fedkrso.events WHERE run = %s"
        if after is None:
            found = self._db.execute(statement, (self._id,)).fetchone()
            assert found is not None
            after = found[0]
        for number, (at, kind, node, text, server_round) in enumerate(lines, after + 1):
            self._db.execute(
                "INSERT INTO fedkrso.events VALUES (%s, %s, %s, %s, %s, %s, %s)",
                # PostgreSQL's text has every character but one.
                (self._id, number, at, kind, node, text.replace("\0", "\N{REPLACEMENT CHARACTER}"), server_round),
            )

    def _lines(self, after: int, most: int, *, newest: bool) -> list[EventRow]:
        order = "number DESC" if newest else "number"
        statement = (
            "SELECT number, at, kind, node, round, text FROM fedkrso.events"  # noqa: S608
            f" WHERE run = %s AND number > %s ORDER BY {order} LIMIT %s"
        )
        return [EventRow(*row) for row in self._db.execute(statement, (self._id, after, most))]

    def _counted(self, kind: str) -> list[tuple[str, int]]:
        statement = "SELECT node, count(*) FROM fedkrso.events WHERE run = %s AND kind = %s GROUP BY node ORDER BY node"
        return [(node, count) for node, count in self._db.execute(statement, (self._id, kind))]

    def _distinct(self) -> list[tuple[float, str, str, str, int]]:
        statement = (
            "SELECT max(at), kind, node, text, count(*) FROM fedkrso.events WHERE run = %s"
            " GROUP BY kind, node, text ORDER BY max(number)"
        )
        return [(row[0], row[1], row[2], row[3], row[4]) for row in self._db.execute(statement, (self._id,))]


class PostgresReader(PostgresLedger):
    """A run's rows to look at; one moment of them, however long that takes.

    Args:
        database: Which, and which run in it.

    Raises:
        RunError: The database cannot be reached, or has no such run.
    """

    def __init__(self, database: Database) -> None:
        self._database, self._leads, self._within = database, False, False
        with in_our_words(database), contextlib.ExitStack() as undone:
            self._db = undone.enter_context(contextlib.closing(connect(database, writes=False)))
            self._db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            self._id = self._looked_up()
            undone.pop_all()

    def __enter__(self) -> PostgresReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, work: Callable[[], T]) -> T:
        with in_our_words(self._database):
            return work()


def _where(columns: tuple[str, ...]) -> str:
    return " AND ".join(f"{column} = %s" for column in ("run", *columns))
