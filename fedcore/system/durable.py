# SPDX-License-Identifier: Apache-2.0
"""Small files that survive a power cut: written beside, flushed, renamed, and the rename flushed too."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

__all__ = ["DurableNumber", "flush_files", "flush_folder", "is_full", "sha256_of", "write_durably"]

_READ_BYTES = 262_144
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full(error: OSError) -> bool:
    """Whether a write failed because there is no room on the disk."""
    return error.errno in _FULL


def flush_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_files(folder: Path) -> None:
    """Make the files of a folder survive a power cut, and their names in it."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    flush_folder(folder)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; what this returned from survives a power cut."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    flush_folder(path.parent)


class DurableNumber:
    """One number in a file of its own; 0 where there is none or where it is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     DurableNumber(Path(folder) / "sent").set(3)
        ...     DurableNumber(Path(folder) / "sent").value
        3
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.value = int(path.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            self.value = 0

    def set(self, value: int) -> None:
        """Keep another number; returns when it is on the disk."""
        write_durably(self._path, str(value).encode("ascii"))
        self.value = value


def sha256_of(path: Path) -> str:
    """A file's SHA-256, hex; reads it once, some of it at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()
