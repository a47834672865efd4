# SPDX-License-Identifier: Apache-2.0
"""The queue on the disk: an entry is there when `keep` returns, whatever happens then."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from coordinator.server.queueing import Entry
from fedcore.errors import RunError, StorageError

__all__ = ["Kept"]

_FORMAT = 1


class Kept:
    """What a server must not forget: entries, which node takes part in which run, and how often it was started.

    Args:
        path: SQLite; made where it is not there. Used by one thread at a time.

    Raises:
        RunError: It is damaged, or of another version.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     kept = Kept(Path(folder) / "queue.sqlite")
        ...     kept.keep(Entry(run="a", submission="0" * 32, by="ann", number=1, submitted_at=0.0))
        ...     kept.close()
        ...     [entry.run for entry in Kept(Path(folder) / "queue.sqlite").entries()]
        ['a']
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            for table in ("runs", "places", "facts"):
                self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} (name TEXT PRIMARY KEY, value BLOB NOT NULL)")
        except sqlite3.Error as error:
            raise self._damaged(error) from None
        if self.fact("format", _FORMAT) != _FORMAT:
            raise RunError("a queue of another version", place=str(path), remedy="go on with the version that made it")
        self.put_fact("format", _FORMAT)

    def entries(self) -> list[Entry]:
        """All entries, in their order.

        Raises:
            RunError: One cannot be read.
        """
        try:
            rows = self._db.execute("SELECT value FROM runs").fetchall()
            found = [msgspec.json.decode(value, type=Entry) for (value,) in rows]
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise self._damaged(error) from None
        return sorted(found, key=lambda entry: entry.number)

    def keep(self, entry: Entry) -> None:
        """An entry as it is now."""
        self._put("runs", entry.run, msgspec.json.encode(entry))

    def places(self) -> dict[str, str]:
        """The run of each node that takes part in one."""
        return {name: value.decode() for name, value in self._db.execute("SELECT name, value FROM places")}

    def put_places(self, places: Iterable[tuple[str, str]]) -> None:
        """All places as they are now, all or none of them written."""
        with self._written(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM places")
            self._db.executemany("INSERT INTO places VALUES (?, ?)", [(node, run.encode()) for node, run in places])

    def fact(self, name: str, default: int) -> int:
        """A number."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", [name]).fetchone()
        return default if row is None else int(row[0])

    def put_fact(self, name: str, value: int) -> None:
        """Another number."""
        self._put("facts", name, str(value).encode())

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _put(self, table: str, name: str, value: bytes) -> None:
        with self._written():
            self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", [name, value])  # noqa: S608 - our words

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            remedy = "free space there, then start the server again: its runs go on"
            raise StorageError(f"the queue cannot be written: {error}", place=str(self._path), remedy=remedy) from None

    def _damaged(self, error: Exception) -> RunError:
        return RunError(f"the queue cannot be read: {error}", place=str(self._path), remedy="put it back from a copy")
