# SPDX-License-Identifier: Apache-2.0
"""A run's ledger moved from SQLite to a database, and back.

All of it is copied first, and compared; then one rename, or one file that goes away, makes the copy count; then the old
one is dropped. Whoever is killed in between finds the ledger whole in one of the two places, and may move it again."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from coordinator.store.folder import RunFolder
from coordinator.store.ledger import LedgerReader, SqliteLedger
from coordinator.store.places import (
    Database,
    database_of,
    keep_database,
    open_database,
    open_ledger,
    require_package,
)
from coordinator.store.tables import TableLedger, Telling, told_to_nobody
from coordinator.store.viewfile import running_coordinator
from fedcore.errors import ConfigError, RunError
from fedcore.system.durable import flush_folder
from fedcore.system.locks import owned

__all__ = ["Moved", "move_ledger"]

_STOP: Final = "stop that one first"


@dataclass(frozen=True)
class Moved:
    """What was moved.

    Attributes:
        rows: How many, over all tables.
        checksum: SHA-256 over all that the ledger holds, the same before and after.
        digest: Of the run's newest published state; empty before the first round.
    """

    rows: int
    checksum: str
    digest: str


def move_ledger(folder: RunFolder, to: Database | None, tell: Telling = told_to_nobody) -> Moved:
    """Move a run's ledger, while nobody leads the run.

    Args:
        folder: The run's.
        to: The database, without the run's key; None for SQLite in the run's folder.
        tell: Told while a database is waited for.

    Raises:
        ConfigError: It is there already.
        RunError: The run is led at this moment, is not there, or the database cannot be used.
    """
    if not folder.has_ledger():
        raise RunError("there is no ledger", place=str(folder.root))
    if (other := running_coordinator(folder.view)) is not None:
        raise RunError(f"its coordinator runs, as process {other}", place=str(folder.root), remedy=_STOP)
    # Nobody begins to lead it meanwhile.
    with owned(folder.root, f"a move of run {folder.root.resolve().name}", remedy=_STOP):
        now = database_of(folder)
        if to is not None and now is None:
            return _into_database(folder, to)
        if to is None and now is not None:
            return _into_file(folder, tell)
    where = str(folder.ledger) if now is None else now.place
    remedy = "nothing to do" if to is None or to.place == where else "move it to sqlite first, and from there on"
    raise ConfigError(f"the ledger is at {where}", place=str(folder.root), remedy=remedy)


def _into_database(folder: RunFolder, to: Database) -> Moved:
    with contextlib.closing(LedgerReader(folder.ledger)) as source:
        held, digest = list(source.everything()), _digest(source)
    require_package()
    from coordinator.store.postgresql.database import begin_run

    to = begin_run(to, folder.root.resolve().name)
    # Nothing is counted yet, so that a copy that nobody came to use may be made again.
    with contextlib.closing(open_database(to)) as target:
        target.take(held)
        moved = _same(held, target, digest)
    keep_database(folder, to)
    open_ledger(folder, leads=True).close()
    _remove(folder.ledger)
    return moved


def _into_file(folder: RunFolder, tell: Telling) -> Moved:
    beside = folder.ledger.with_name(folder.ledger.name + ".new")
    _remove(beside)
    # From here on nobody else can write to the one in the database.
    with contextlib.closing(open_ledger(folder, leads=True, tell=tell)) as source:
        held, digest = list(source.everything()), _digest(source)
        with contextlib.closing(SqliteLedger(beside)) as target:
            target.take(held)
            moved = _same(held, target, digest)
        # Of an earlier one: SQLite would take its log for the new file's.
        _remove(folder.ledger)
        beside.replace(folder.ledger)
        flush_folder(folder.root)
        folder.database.unlink()
        flush_folder(folder.root)
        source.drop_run()
    return moved


def _same(held: Sequence[tuple[str, Sequence[tuple[Any, ...]]]], target: TableLedger, digest: str) -> Moved:
    """Check that a copy is one."""
    checksum = _checksum(held)
    if _checksum(target.everything()) != checksum or _digest(target) != digest:
        raise RunError("the copy is not what was copied", remedy="the ledger stays where it was; try again")
    return Moved(sum(len(rows) for _, rows in held), checksum, digest)


def _checksum(held: Iterable[tuple[str, Sequence[tuple[Any, ...]]]]) -> str:
    found = hashlib.sha256()
    for name, rows in held:
        for row in rows:
            found.update(msgspec.msgpack.encode((name, tuple(row))))
    return found.hexdigest()


def _digest(ledger: TableLedger) -> str:
    rows = ledger.rounds()
    last = rows[-1].round if rows else 0
    return next((obj.digest for obj in ledger.published_states() if obj.version == last), "")


def _remove(ledger: Path) -> None:
    """Remove a file of SQLite, and the two that it may have beside it."""
    for ending in ("-wal", "-shm", ""):
        ledger.with_name(ledger.name + ending).unlink(missing_ok=True)
