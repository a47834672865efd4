# SPDX-License-Identifier: Apache-2.0
"""The disk side of transfers. Memory does not grow with the size of a file."""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from pathlib import Path

import msgspec

from fedcore.fields.checked import MAX_CHUNKS, HaveBits
from fedcore.fields.manifest import Manifest
from fedcore.system.durable import flush_folder, sha256_of
from fedcore.wire.bitmap import Bitmap
from fedcore.wire.messages import Chunk

__all__ = ["PartialFile", "is_whole", "manifest_of", "read_chunk"]

_MOST_UNSAVED, _LONGEST_UNSAVED_SECONDS = 64, 2.0
# A bitmap of the most chunks there may be, and the manifest.
_MAX_HAVE_BYTES = MAX_CHUNKS // 8 + 4096


def manifest_of(path: Path, chunk_bytes: int) -> Manifest:
    """A file's manifest; reads it once."""
    return Manifest(path.name, path.stat().st_size, sha256_of(path), chunk_bytes)


def is_whole(path: Path, manifest: Manifest) -> bool:
    """Whether a file is an object, by its length and SHA-256; reads it once."""
    return path.stat().st_size == manifest.size_bytes and sha256_of(path) == manifest.sha256


def read_chunk(path: Path, transfer: str, index: int, chunk_bytes: int) -> Chunk:
    """Chunk `index` of a file, ready to send."""
    with path.open("rb") as file:
        file.seek(index * chunk_bytes)
        data = file.read(chunk_bytes)
    return Chunk(transfer, index, zlib.crc32(data), data)


class PartialFile:
    """A file that arrives in chunks: `<path>.part`, with the manifest and bitmap of flushed chunks in `<path>.have`.

    The bitmap on disk only ever says less than what is there, since chunks are flushed before it is written; so a crash
    costs some chunks again, never a hole. A partial file of another manifest is discarded."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._part = path.with_name(path.name + ".part")
        self._have = path.with_name(path.name + ".have")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.bitmap = Bitmap(manifest.chunks, self._stored_bitmap())
        self._file = self._part.open("r+b" if self._part.exists() else "w+b")
        self._unsaved, self._saved_at = 0, time.monotonic()

    def write(self, index: int, data: bytes) -> None:
        """Store a chunk at its place."""
        self._file.seek(index * self.manifest.chunk_bytes)
        self._file.write(data)
        self.bitmap.add(index)
        self._unsaved += 1
        # By number on a fast link, by time on a slow one, where a few chunks are minutes of work.
        if self._unsaved >= _MOST_UNSAVED or time.monotonic() - self._saved_at >= _LONGEST_UNSAVED_SECONDS:
            self.save()

    def save(self) -> None:
        """Flush chunks, then the bitmap that says they are there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        beside = self._have.with_name(self._have.name + ".new")
        beside.write_bytes(msgspec.msgpack.encode((self.manifest, self.bitmap.tobytes())))
        beside.replace(self._have)
        self._unsaved, self._saved_at = 0, time.monotonic()

    def finish(self) -> bool:
        """Check the SHA-256; if right, flush and rename to `path`. If wrong, start over from nothing."""
        self._file.flush()
        if not is_whole(self._part, self.manifest):
            self._file.truncate(0)
            self._have.unlink(missing_ok=True)
            self.bitmap = Bitmap(self.manifest.chunks)
            return False
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self.path)
        self._have.unlink(missing_ok=True)
        flush_folder(self.path.parent)
        return True

    def close(self) -> None:
        """Stop for now; a later `PartialFile` of the same path and manifest goes on."""
        if not self._file.closed:
            self.save()
            self._file.close()

    def abandon(self) -> None:
        """Stop without another write (the disk may be full); what was flushed before stays."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _stored_bitmap(self) -> bytes:
        try:
            with self._have.open("rb") as file:
                stored = file.read(_MAX_HAVE_BYTES)
            manifest, have = msgspec.msgpack.decode(stored, type=tuple[Manifest, HaveBits])
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            manifest, have = None, b""
        if manifest == self.manifest and self._part.exists():
            return have
        self._part.unlink(missing_ok=True)
        self._have.unlink(missing_ok=True)
        return b""
