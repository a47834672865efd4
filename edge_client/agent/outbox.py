# SPDX-License-Identifier: Apache-2.0
"""The outbox on disk: the update that is waiting to be committed, and what was sent last. Survives any restart."""

from __future__ import annotations

from pathlib import Path

from fedcore.system.durable import DurableNumber, write_durably
from fedcore.wire.files import manifest_of

__all__ = ["Outbox"]

# Of a manifest only the digest is wanted here.
_ANY_CHUNK_BYTES = 262_144


class Outbox:
    """At most one update waits: a newer round's replaces an older one.

    Args:
        folder: Where updates lie as `<round>.bin`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._sent = DurableNumber(folder / "sent")
        self._run = folder / "run"
        self._forget([path for path in self._waiting() if self._is_torn(path)])

    def begin(self, run_id: str) -> None:
        """From here on updates are of this run: what was sent and what waits in another run of the same name is
        forgotten. Repeating it changes nothing.

        Args:
            run_id: Tells the run from every other of its name.
        """
        before = self._run.read_text(encoding="ascii", errors="replace") if self._run.exists() else ""
        if before == run_id:
            return
        # The run last: killed in between, all of this is done again.
        self._forget(self._waiting())
        self._sent.set(0)
        write_durably(self._run, run_id.encode("ascii"))

    def path(self, server_round: int) -> Path:
        """Where the worker writes a round's update (beside and renamed: it is there whole or not at all)."""
        return self._folder / f"{server_round}.bin"

    @property
    def waiting_round(self) -> int:
        """Round of the update that is waiting, 0 for none."""
        return max((int(path.stem) for path in self._waiting()), default=0)

    def seal(self, server_round: int) -> None:
        """Keep the SHA-256 of an update that is whole: one that a disk has damaged since is trained again instead of
        refused."""
        path = self.path(server_round)
        write_durably(path.with_suffix(".sha256"), manifest_of(path, _ANY_CHUNK_BYTES).sha256.encode("ascii"))

    @property
    def sent_round(self) -> int:
        """The last round that was committed or refused."""
        return self._sent.value

    def forget_before(self, server_round: int) -> None:
        """Remove updates of earlier rounds: nobody takes them any more."""
        self._forget([path for path in self._waiting() if int(path.stem) < server_round])

    def sent(self, server_round: int) -> None:
        """Remember that a round is over, and forget its update and older ones."""
        self._sent.set(max(server_round, self._sent.value))
        self.forget_before(server_round + 1)

    @staticmethod
    def _forget(paths: list[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)
            path.with_suffix(".sha256").unlink(missing_ok=True)
            for ending in (".masked", ".masked.part", ".plain"):
                path.with_suffix(ending).unlink(missing_ok=True)

    def _waiting(self) -> list[Path]:
        return [path for path in self._folder.glob("*.bin") if path.stem.isdecimal()]

    def _is_torn(self, path: Path) -> bool:
        # Without a seal: killed between the update and its seal. Whether it is whole cannot be told; trained again, it
        # is the same.
        seal = path.with_suffix(".sha256")
        return not seal.exists() or seal.read_bytes() != manifest_of(path, _ANY_CHUNK_BYTES).sha256.encode("ascii")
