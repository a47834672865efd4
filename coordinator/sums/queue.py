# SPDX-License-Identifier: Apache-2.0
"""Pieces of sums in a database: handed out, taken by one worker at a time, and given back by the database itself when
that one is gone.

Whoever works on a piece holds its row locked, in a transaction that lasts as long as the work. A worker that is killed
loses its connection, and with it the lock: the next one takes the row (`FOR UPDATE SKIP LOCKED`)."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from coordinator.store.places import Database
from coordinator.store.postgresql.database import Connection, connect, in_our_words, make_table
from fedcore.model.pieces import Piece

__all__ = ["Claim", "Queue"]

_TABLE: Final = """CREATE TABLE IF NOT EXISTS fedkrso.pieces (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run text COLLATE "C" NOT NULL, task text NOT NULL, task_sha256 text NOT NULL, block integer NOT NULL,
    shard integer NOT NULL, tries integer NOT NULL, sha256 text, failed text)"""
_CHANNEL: Final = "fedkrso_pieces"
_MOST_TRIES: Final = 5
"""A piece that was taken so often, and whose workers are gone, is left to the coordinator."""
_OPEN: Final = "sha256 IS NULL AND failed IS NULL"


@dataclass
class Claim:
    """A piece that nobody else works on.

    Attributes:
        run: Its name.
        task: Names the task's folder within the run's `sums`.
        task_sha256: Of the task's file.
        piece: Which.
        sha256: Of what it comes to; whoever works on it says so here.
        failed: Or why it comes to nothing.
    """

    run: str
    task: str
    task_sha256: str
    piece: Piece
    sha256: str | None = None
    failed: str | None = None


class Queue:
    """A connection to the pieces of all runs in a database; use it as a context manager.

    Args:
        database: Which.

    Raises:
        RunError: It cannot be reached. So does every method that finds it gone.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        with self._in_our_words():
            self._db: Connection = connect(database)
            # A piece takes as long as it takes.
            self._db.execute("SELECT set_config('idle_in_transaction_session_timeout', '0', false)")
            make_table(self._db, _TABLE)
            self._db.execute(f"LISTEN {_CHANNEL}")

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def hand_out(self, run: str, task: str, task_sha256: str, pieces: Sequence[Piece]) -> None:
        """Have pieces be worked on."""
        with self._in_our_words(), self._db.transaction():
            for piece in pieces:
                self._db.execute(
                    "INSERT INTO fedkrso.pieces (run, task, task_sha256, block, shard, tries)"
                    " VALUES (%s, %s, %s, %s, %s, 0)",
                    (run, task, task_sha256, *piece),
                )
            self._tell()

    def drop(self, run: str) -> None:
        """Forget a run's pieces, but for those that somebody is at: these are forgotten next time."""
        inner = "SELECT id FROM fedkrso.pieces WHERE run = %s FOR UPDATE SKIP LOCKED"
        with self._in_our_words():
            self._db.execute(f"DELETE FROM fedkrso.pieces WHERE id IN ({inner})", (run,))  # noqa: S608

    def ended(self, task: str) -> list[tuple[Piece, str | None]]:
        """Pieces of a task that nobody works on any more: with the SHA-256 of what they came to, or None for those that
        failed."""
        statement = f"SELECT block, shard, sha256 FROM fedkrso.pieces WHERE task = %s AND NOT ({_OPEN})"  # noqa: S608
        with self._in_our_words():
            return [(Piece(row[0], row[1]), row[2]) for row in self._db.execute(statement, (task,))]

    def wait(self, seconds: float) -> None:
        """Wait until somebody hands out or ends something, for so long at most."""
        with self._in_our_words():
            for _ in self._db.notifies(timeout=seconds, stop_after=1):
                pass

    @contextlib.contextmanager
    def claimed(self, runs: Collection[str], task: str | None = None) -> Iterator[Claim | None]:
        """A piece to work on, which nobody else takes meanwhile; None where there is none. What the claim says at the
        end counts; an exception leaves the piece to others.

        Args:
            runs: Names of runs whose folders are here.
            task: Of this one alone, however many have failed at it; None: of all.
        """
        with contextlib.ExitStack() as held:
            claim = None
            with self._in_our_words():
                # Another may be quicker in between.
                while claim is None and (chosen := self._chosen(runs, task)) is not None:
                    claim = self._held(chosen, held)
            yield claim
            if claim is not None:
                with self._in_our_words():
                    self._db.execute(
                        "UPDATE fedkrso.pieces SET sha256 = %s, failed = %s WHERE id = %s",
                        (claim.sha256, claim.failed, chosen),
                    )
                    self._tell()
                    held.close()

    def _held(self, chosen: int, held: contextlib.ExitStack) -> Claim | None:
        """A piece, locked for as long as the transaction lasts that this begins; None where another has it."""
        with contextlib.ExitStack() as begun:
            begun.enter_context(self._db.transaction())
            columns = "run, task, task_sha256, block, shard"
            statement = f"SELECT {columns} FROM fedkrso.pieces WHERE id = %s AND {_OPEN} FOR UPDATE SKIP LOCKED"  # noqa: S608
            row = self._db.execute(statement, (chosen,)).fetchone()
            if row is None:
                return None
            held.push(begun.pop_all())
            return Claim(row[0], row[1], row[2], Piece(row[3], row[4]))

    def _chosen(self, runs: Collection[str], task: str | None) -> int | None:
        """A piece that nobody is at, counted as tried before it is: whoever dies of it cannot say so."""
        given: list[Any] = [list(runs), _MOST_TRIES if task is None else 2**31 - 1]
        only = ""
        if task is not None:
            only, given = "AND task = %s ", [*given, task]
        inner = (
            f"SELECT id FROM fedkrso.pieces WHERE run = ANY(%s) AND tries < %s {only}AND {_OPEN}"  # noqa: S608
            " ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"
        )
        statement = f"UPDATE fedkrso.pieces SET tries = tries + 1 WHERE id = ({inner}) RETURNING id"  # noqa: S608
        row = self._db.execute(statement, given).fetchone()
        return None if row is None else row[0]

    def _tell(self) -> None:
        self._db.execute(f"NOTIFY {_CHANNEL}")

    def _in_our_words(self) -> contextlib.AbstractContextManager[None]:
        return in_our_words(self._database)
