# SPDX-License-Identifier: Apache-2.0
"""A run made of a backup.

It begins after the backup's last closed round and under a new id, so that nodes which have gone on since begin it anew:
what they had trained, or held, of rounds that are gone counts nowhere. The same seeds give the same rounds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import IO, Final

import msgspec

from coordinator.backups.contents import FORMAT, INDEX, Index, is_name
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import SqliteLedger
from fedcore.errors import ConfigError, RunError, StorageError
from fedcore.system.durable import flush_folder, is_full

__all__ = ["restore"]

_BLOCK_BYTES = 2**20
_MOST_INDEX_BYTES = 2**28
_DAMAGED: Final = "take another backup"


def restore(backup: Path, runs: Path, clock: float | None = None) -> tuple[RunFolder, Index]:
    """Make a run of a backup, in a folder of runs that has none of its name.

    Args:
        backup: The file.
        runs: Folder of runs.
        clock: Unix seconds, for the event log; now by default.

    Returns:
        The run's folder, which `fedkrso coordinator resume` goes on with, and what was in the backup.

    Raises:
        ConfigError: There is a run of this name, or the file is no backup.
        RunError: The backup is damaged, of another version, or of a run that must not be set back.
        StorageError: The disk is full, or the folder cannot be written.
    """
    beside = runs / f".{backup.name}.restored"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(mode=0o700)
        try:
            index = _unpacked(backup, beside)
            _require_fitting(index, backup, runs)
            # The run's own mode is that of every run.
            beside.chmod(0o755)
            _begin(RunFolder(beside), index, time.time() if clock is None else clock)
            folder = RunFolder(runs / index.run)
            beside.rename(folder.root)
            flush_folder(runs)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        remedy = "free space there" if is_full(error) else "give this user the right to, or name another --runs"
        place = str(error.filename or runs)
        raise StorageError(f"cannot be read or written: {error.strerror}", place=place, remedy=remedy) from None
    return folder, index


def _require_fitting(index: Index, backup: Path, runs: Path) -> None:
    if index.format != FORMAT:
        raise RunError(
            f"the backup is of format {index.format} ({index.software}), this program reads {FORMAT}",
            place=str(backup),
            remedy="restore it with the version that made it",
        )
    if (runs / index.run).exists():
        raise ConfigError(
            f"there is a run {index.run!r}", place=str(runs), remedy="name another --runs, or move it away"
        )
    if index.private and not index.finished:
        raise RunError(
            f"run {index.run!r} promises privacy: what it has told since this backup would count nowhere",
            place=str(backup),
            remedy="begin a new run",
        )


def _unpacked(backup: Path, folder: Path) -> Index:
    """Write the files, and check each."""
    found: dict[str, tuple[int, str]] = {}
    index: Index | None = None
    try:
        with tarfile.open(backup, mode="r:") as tar:
            for entry in tar:
                if entry.isfile() and entry.name == INDEX and entry.size <= _MOST_INDEX_BYTES:
                    source = tar.extractfile(entry)
                    assert source is not None, "a file"
                    index = msgspec.json.decode(source.read(), type=Index)
                elif entry.isfile() and is_name(entry.name) and entry.name not in found:
                    source = tar.extractfile(entry)
                    assert source is not None, "a file"
                    found[entry.name] = _write(source, folder / entry.name)
                else:
                    raise RunError(f"has {entry.name!r}, which no backup has", place=str(backup), remedy=_DAMAGED)
    except (tarfile.TarError, msgspec.DecodeError, EOFError, UnicodeDecodeError) as error:
        raise RunError(f"is no backup, or is damaged: {error}", place=str(backup), remedy=_DAMAGED) from None
    if index is None:
        raise RunError("was cut short: its last file is not there", place=str(backup), remedy=_DAMAGED)
    if wrong := sorted(name for name in {*found, *index.files} if found.get(name) != index.files.get(name)):
        raise RunError(f"{wrong[0]} is damaged in it", place=str(backup), remedy=_DAMAGED)
    return index


def _write(source: IO[bytes], path: Path) -> tuple[int, str]:
    path.parent.mkdir(exist_ok=True)
    size, found = 0, hashlib.sha256()
    mode = 0o600 if path.name == "job.json" else 0o644
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        while block := source.read(_BLOCK_BYTES):
            file.write(block)
            found.update(block)
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    return size, found.hexdigest()


def _begin(folder: RunFolder, index: Index, now: float) -> None:
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(index.made_at))
    words = f"restored from a backup of {made}, after round {index.rounds}: nodes begin anew"
    with contextlib.closing(SqliteLedger(folder.ledger)) as ledger:
        ledger.note(now, "restored", "", words, index.rounds)
    for part in (folder.root, *(path for path in folder.root.iterdir() if path.is_dir())):
        flush_folder(part)
