# SPDX-License-Identifier: Apache-2.0
"""Where a run's ledger is: SQLite in its folder, or the database that `ledger.json` there names. Everybody who opens or
reads the ledger of a run comes through here."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import msgspec

from coordinator.store.folder import RunFolder
from coordinator.store.ledger import Ledger, LedgerReader, SqliteLedger
from coordinator.store.rows import EventRow
from coordinator.store.tables import TableLedger, Telling, told_to_nobody
from fedcore.errors import ConfigError, RunError
from fedcore.system.durable import flush_folder

__all__ = [
    "Database",
    "Reader",
    "begin_in",
    "database_of",
    "keep_database",
    "open_database",
    "open_ledger",
    "read_events",
    "read_ledger",
    "require_package",
]


class Database(msgspec.Struct, frozen=True, kw_only=True):
    """A database, and a run in it; as JSON this is `ledger.json` in the run's folder.

    Attributes:
        url: `postgresql://user@host:port/name?parameter=...`, without a password.
        password_file: File with the password alone; without it libpq looks where it always does (`~/.pgpass`).
        key: What tells the run's rows from those of every other run of its name.

    Example:
        >>> Database(url="postgresql://fedkrso@db.example:5433/runs?sslmode=require").place
        'db.example:5433/runs'
    """

    url: str
    password_file: str | None = None
    key: str = ""

    @property
    def place(self) -> str:
        """For errors: host and name, neither user nor parameters."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2] or parse_qs(parts.query).get("host", [""])[0] or "localhost"
        return f"{host}{parts.path}"


class Reader(Ledger, Protocol):
    """A ledger as it was at one moment, to look at."""

    def reasons(self) -> list[tuple[float, str, str, str, int]]:
        """The event log without what it repeats: (last time, kind, node, text, how often), newest last."""
        ...

    def lines(self, after: int, most: int) -> list[EventRow]:
        """See `TableLedger`."""
        ...

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def database_of(folder: RunFolder) -> Database | None:
    """The database that a run's ledger is in; None for one in the run's folder.

    Raises:
        RunError: The file that names it is damaged.
    """
    try:
        return msgspec.json.decode(folder.database.read_bytes(), type=Database)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        remedy = "put it back from a copy"
        raise RunError(f"cannot be read: {error}", place=str(folder.database), remedy=remedy) from None


def keep_database(folder: RunFolder, database: Database) -> None:
    """Have a run's ledger be in a database from now on: beside and renamed, so that it is in one place or the other."""
    beside = folder.database.with_name(folder.database.name + ".new")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(database)))
    beside.replace(folder.database)
    flush_folder(folder.root)


def begin_in(folder: RunFolder, database: Database, name: str) -> None:
    """Have a new run's ledger be in a database.

    Args:
        folder: The run's, which has no ledger yet.
        database: Which.
        name: The run's.

    Raises:
        RunError: The database cannot be used, or has a run of this name.
    """
    require_package()
    from coordinator.store.postgresql.database import begin_run

    keep_database(folder, begin_run(database, name))


def require_package() -> None:
    """Check that PostgreSQL can be spoken to from here.

    Raises:
        ConfigError: psycopg is not installed, or finds no libpq.
    """
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"a ledger in PostgreSQL needs psycopg: {error}", place="ledger.url", remedy="pip install fedkrso[postgres]"
        ) from None


def open_ledger(folder: RunFolder, *, leads: bool = False, tell: Telling = told_to_nobody) -> TableLedger:
    """A run's ledger, wherever it is; without one, a new file in the run's folder.

    Args:
        folder: The run's.
        leads: Whether this is the run's coordinator: nobody else may then write to a database, and one that goes away
            is waited for.
        tell: Told while it is waited for.

    Raises:
        RunError: It cannot be opened, or is of another version.
    """
    database = database_of(folder)
    return SqliteLedger(folder.ledger) if database is None else open_database(database, leads=leads, tell=tell)


def open_database(database: Database, *, leads: bool = False, tell: Telling = told_to_nobody) -> TableLedger:
    """The ledger of a run in a database; as `open_ledger`.

    Args:
        database: Which, and which run in it.
        leads: As there.
        tell: As there.

    Raises:
        RunError: It cannot be opened, or is of another version.
    """
    require_package()
    from coordinator.store.postgresql.ledger import PostgresLedger

    return PostgresLedger(database, leads=leads, tell=tell)


def read_ledger(folder: RunFolder) -> Reader:
    """A run's ledger to look at, beside a coordinator that goes on writing.

    Raises:
        RunError: It is not there, or cannot be read.
    """
    database = database_of(folder)
    if database is None:
        return LedgerReader(folder.ledger)
    require_package()
    from coordinator.store.postgresql.ledger import PostgresReader

    return PostgresReader(database)


def read_events(ledger: Path, after: int, most: int) -> list[EventRow]:
    """Lines of a run's event log, oldest first, beside a coordinator that goes on writing it.

    Opened for this alone: a connection serves one thread, and one that stays open keeps a file's log from being tidied.

    Args:
        ledger: The ledger's file; it is read where the folder that it lies in says.
        after: Number of a line; what came later is wanted. 0: the newest lines.
        most: How many at most.

    Raises:
        RunError: There is no ledger, or it cannot be read.
    """
    folder = RunFolder(ledger.parent)
    with LedgerReader(ledger) if database_of(folder) is None else read_ledger(folder) as reader:
        found: list[EventRow] = reader.lines(after, most)
    return found
