# SPDX-License-Identifier: Apache-2.0
"""Locks between processes: a folder has one owner, and a second process that would write there is refused and told who
the first is; and files that say by their lock alone that somebody wants or has something.

The kernel gives a lock back when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fedcore.errors import RunError, StorageError

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FileLock", "owned", "owner_pid", "turn"]

_MOST_BYTES = 200


@contextlib.contextmanager
def owned(folder: Path, owner: str, *, remedy: str) -> Iterator[None]:
    """Have a folder for oneself.

    Args:
        folder: It is made if it is not there; its file `.lock` names the owner.
        owner: Who has it, for whoever comes second.
        remedy: What the second one can do.

    Raises:
        RunError: Somebody has it.
        StorageError: It cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, owned(Path(folder), "node kitchen", remedy="wait"):
        ...     (Path(folder) / ".lock").read_text().startswith("node kitchen, process ")
        True
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / ".lock").open("a+")
    except OSError as error:
        remedy = "give this user the right to write there, or set another folder"
        raise StorageError(f"cannot be written: {error.strerror}", place=str(folder), remedy=remedy) from None
    with opened as file:
        if not _locked(file):
            file.seek(0)
            other = file.read(_MOST_BYTES).strip() or "another process"
            raise RunError(f"{other} works in this folder", place=str(folder), remedy=remedy)
        file.truncate(0)
        file.write(f"{owner}, process {os.getpid()}")
        file.flush()
        yield


def owner_pid(folder: Path) -> int | None:
    """The process that has a folder for itself; None if none does.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, owned(Path(folder), "node kitchen", remedy="wait"):
        ...     owner_pid(Path(folder)) == os.getpid()
        True
    """
    path = folder / ".lock"
    if not FileLock(path).taken_elsewhere():
        return None
    found = re.search(r"process (\d+)$", path.read_text(encoding="utf-8", errors="replace"))
    return int(found[1]) if found else None


class FileLock:
    """A lock on a file; nothing is written into it. Where the system has no such locks, it is always free.

    Args:
        path: The file; made with its folder when it is first taken.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ours, theirs = FileLock(Path(folder) / "room"), FileLock(Path(folder) / "room")
        ...     ours.take(), theirs.take(), theirs.taken_elsewhere(), ours.release()
        (True, False, True, None)
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    @property
    def held(self) -> bool:
        """Whether it was taken by this object."""
        return self._file is not None

    def take(self) -> bool:
        """Take it if it is free; True also if it was taken before."""
        if self._file is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("ab")
        if not _locked(file):
            file.close()
            return False
        self._file = file
        return True

    def release(self) -> None:
        """Give it back; harmless when repeated."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def taken_elsewhere(self) -> bool:
        """Whether somebody else has it."""
        if self._file is not None:
            return False
        try:
            # Shared, so that two that only look are not in each other's way.
            with self._path.open("rb") as file:
                return not _locked(file, shared=True)
        except FileNotFoundError:
            return False


def _locked(file: IO[Any], *, shared: bool = False) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process has its turn in a folder. The kernel ends a turn when the process ends.

    Args:
        folder: It is made if it is not there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, turn(Path(folder) / "models"):
        ...     (Path(folder) / "models" / ".turn").exists()
        True
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".turn").open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
