# SPDX-License-Identifier: Apache-2.0
"""The outbox on disk: the update that is waiting to be committed, and what was sent last. Survives any restart."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fedcore.wire.files import flush_folder

__all__ = ["Outbox"]


class Outbox:
    """At most one update waits: a newer round's replaces an older one.

    Args:
        folder: Where updates lie as `<round>.bin`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, server_round: int) -> Path:
        """Where the worker writes a round's update (beside and renamed: it is there whole or not at all)."""
        return self._folder / f"{server_round}.bin"

    @property
    def waiting_round(self) -> int:
        """Round of the update that is waiting, 0 for none."""
        return max((int(path.stem) for path in self._folder.glob("*.bin") if path.stem.isdigit()), default=0)

    @property
    def sent_round(self) -> int:
        """The last round that was committed or refused."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self._folder / "sent").read_text())
        return 0

    def sent(self, server_round: int) -> None:
        """Remember that a round is over, and forget its update and older ones."""
        beside = self._folder / "sent.part"
        with beside.open("w") as file:
            file.write(str(max(server_round, self.sent_round)))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._folder / "sent")
        flush_folder(self._folder)
        for path in self._folder.glob("*.bin"):
            if path.stem.isdigit() and int(path.stem) <= server_round:
                path.unlink()
