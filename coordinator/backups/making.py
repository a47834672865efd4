# SPDX-License-Identifier: Apache-2.0
"""A backup of a run, also while its coordinator goes on.

The ledger is read at one moment. Then every file that it needs is opened at once: a coordinator that drops one
afterwards takes only its name away. Files are never changed where they lie, only written beside and renamed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from coordinator.backups.contents import INDEX, LEDGER, Index, rows_until
from coordinator.job import Job
from coordinator.store.folder import RunFolder, stored_job
from coordinator.store.ledger import RoundRow, SqliteLedger
from coordinator.store.places import read_ledger
from coordinator.store.viewfile import read_view
from fedcore.errors import ConfigError, RunError, StorageError
from fedcore.round.plan import StateObject
from fedcore.system.durable import flush_folder, is_full

__all__ = ["back_up"]

_TRIES = 20


class _Gone(Exception):
    """A file that the ledger needs went away before it was opened."""


def back_up(folder: RunFolder, out: Path) -> Index:
    """Write a backup.

    Args:
        folder: The run's.
        out: The file; it is its owner's alone, since a job may have a password, and is there whole or not at all.

    Returns:
        What is in it.

    Raises:
        ConfigError: The file is there already, or cannot be written.
        RunError: There is no such run, or it is damaged.
        StorageError: The disk is full.
    """
    job = stored_job(folder.root)
    if out.exists():
        raise ConfigError("is there already", place=str(out), remedy="name another file")
    beside = out.with_name(f".{out.name}.new")
    try:
        with _private(beside) as file:
            index = _tried(folder, job, file)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(out)
        flush_folder(out.absolute().parent)
    except OSError as error:
        kind = StorageError if is_full(error) else ConfigError
        raise kind(f"cannot be written: {error.strerror}", place=str(out), remedy="name another file") from None
    finally:
        beside.unlink(missing_ok=True)
    return index


def _tried(folder: RunFolder, job: Job, file: IO[bytes]) -> Index:
    for _ in range(_TRIES):
        file.seek(0)
        file.truncate()
        with contextlib.suppress(_Gone):
            return _written(folder, job, file)
    raise RunError("its files change faster than they can be opened", place=str(folder.root), remedy="try again")


def _written(folder: RunFolder, job: Job, file: IO[bytes]) -> Index:
    with contextlib.ExitStack() as stack:
        with read_ledger(folder) as ledger:
            held, rows, objects = list(ledger.everything()), ledger.rounds(), ledger.published_states()
            artefact = ledger.fact("artefact", str)
        opened = {name: stack.enter_context(_open(folder, name)) for name in _needed(folder, rows, objects, artefact)}
        seen = read_view(folder.view)
        finished = seen is not None and seen.ended == "finished"
        if finished:
            for name in ("summary.json", "report.html", "view.json"):
                with contextlib.suppress(_Gone):
                    opened[name] = stack.enter_context(_open(folder, name))
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / LEDGER
        last = rows[-1].round if rows else 0
        with contextlib.closing(SqliteLedger(copy)) as target:
            target.take(rows_until(held, last))
        opened[LEDGER] = stack.enter_context(copy.open("rb"))
        sums = {folder.published_state(o.version, o.kind).name: o.manifest.sha256 for o in objects}
        with tarfile.open(fileobj=file, mode="w") as tar:
            files = {name: _add(tar, name, source) for name, source in opened.items()}
            for name, (_, found) in files.items():
                if name.startswith("published/") and sums[Path(name).name] != found:
                    raise RunError("is damaged", place=str(folder.root / name), remedy="fedkrso coordinator resume")
            index = Index.of(
                run=job.run,
                made_at=time.time(),
                rounds=last,
                digest=next((o.digest for o in objects if o.version == last and not o.snapshot), ""),
                private=job.privacy.noise is not None,
                finished=finished,
                files=files,
            )
            _add(tar, INDEX, io.BytesIO(msgspec.json.format(msgspec.json.encode(index))))
    return index


def _needed(folder: RunFolder, rows: list[RoundRow], objects: list[StateObject], artefact: str | None) -> Iterator[str]:
    """What a coordinator cannot go on without; master copies are made anew."""
    yield from ("job.json", "format.json")
    if artefact is not None:
        yield "artefact.bin"
    for obj in objects:
        yield str(folder.published_state(obj.version, obj.kind).relative_to(folder.root))
    if rows:
        yield str(folder.state(rows[-1].round).relative_to(folder.root))


def _open(folder: RunFolder, name: str) -> IO[bytes]:
    try:
        return (folder.root / name).open("rb")
    except FileNotFoundError:
        raise _Gone from None


def _add(tar: tarfile.TarFile, name: str, source: IO[bytes]) -> tuple[int, str]:
    """Put a file into the tar; its bytes and SHA-256."""
    source.seek(0, os.SEEK_END)
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = source.tell(), 0o600
    source.seek(0)
    hashed = _Hashed(source)
    tar.addfile(entry, hashed)
    return entry.size, hashed.found.hexdigest()


class _Hashed:
    """A file that is hashed as it is read."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self.found = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.found.update(data)
        return data


@contextlib.contextmanager
def _private(path: Path) -> Iterator[Any]:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file:
        yield file
