# SPDX-License-Identifier: Apache-2.0
"""What a node holds of its run, for another process that reads it from the disk while the agent goes on.

The agent writes the note after its worker has proved the state that it names, so what lies on the disk is that state or
a newer one. Whoever reads checks the digest, and reads the note again where it does not fit."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fedcore.fields.prepared import prepared
from fedcore.system.durable import write_durably
from fedcore.worker.serving import Held

__all__ = ["HeldNote"]


class HeldNote:
    """The note in a node's folder.

    Args:
        folder: The node's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "held.msgpack"
        self._written: Held | None = None
        self._seen: tuple[int, int] | None = None
        self._read: Held | None = None

    def write(self, held: Held) -> None:
        """Say what is held; nothing is written where the note says it already."""
        if held != self._written:
            write_durably(self._path, msgspec.msgpack.encode(held))
            self._written = held

    def read(self, run: str) -> Held | None:
        """What is held of a run; None: nothing yet. Cheap where the note has not changed since the last call."""
        try:
            about = self._path.stat()
            seen = (about.st_ino, about.st_mtime_ns)
            if seen != self._seen:
                self._read = msgspec.msgpack.decode(self._path.read_bytes(), type=prepared(Held))
                self._seen = seen
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, ValueError):
            # Of another version of this program, or damaged: the agent writes it again.
            return None
        return self._read if self._read is not None and self._read.run == run else None
