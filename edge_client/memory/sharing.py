# SPDX-License-Identifier: Apache-2.0
"""One budget, two that want it: training (the agent's worker) and serving (the server's).

Two models do not fit where one was planned for, so they take turns. Three locks in the node's folder say how things
stand, and the kernel gives them back however a process ends:

- `memory`: whoever has it may have a worker;
- `training`, `serving`: its side needs the memory now. A worker that is kept warm has it and does not need it.

Training goes first: a round has a deadline. Serving lets go as soon as it sees that training wants the memory, and
takes it only while training does not. Training lets go when serving wants it and there is nothing to train."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edge_client.memory.probes import process_bytes
from fedcore.system.locks import FileLock, owner_pid

__all__ = ["Sharing", "Side", "agent_bytes", "server_bytes", "server_folder"]

Side = Literal["training", "serving"]
_OTHER: dict[Side, Side] = {"training": "serving", "serving": "training"}


def server_folder(folder: Path) -> Path:
    """Where a node's server keeps what is its own."""
    return folder / "serving"


def server_bytes(folder: Path) -> int:
    """What the node's server uses, without its worker; 0 while there is none.

    Args:
        folder: The node's.
    """
    return _owner_bytes(server_folder(folder))


def agent_bytes(folder: Path) -> int:
    """What the node's agent uses, without its worker; 0 while there is none.

    Args:
        folder: The node's.
    """
    return _owner_bytes(folder)


class Sharing:
    """One side's hold on the memory that a node has for one worker.

    Args:
        folder: The node's.
        side: Which.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     training, serving = Sharing(Path(folder), "training"), Sharing(Path(folder), "serving")
        ...     serving.take(), training.take(), serving.other_wants()
        ...     serving.leave(), training.take(), serving.take()
        ...     training.leave(), serving.leave()
        (True, False, True)
        (None, True, False)
        (None, None)
    """

    def __init__(self, folder: Path, side: Side) -> None:
        place = folder / "sharing"
        self._side: Side = side
        self._memory, self._ours = FileLock(place / "memory"), FileLock(place / side)
        self._theirs = FileLock(place / _OTHER[side])

    @property
    def held(self) -> bool:
        """Whether this side has the memory."""
        return self._memory.held

    def take(self) -> bool:
        """Want the memory, and have it if it can be had; else try again, and the other side will see it."""
        self._ours.take()
        if self._memory.held:
            return True
        if self._side == "serving" and self._theirs.taken_elsewhere():
            return False
        return self._memory.take()

    def other_wants(self) -> bool:
        """Whether the other side needs the memory now."""
        return self._theirs.taken_elsewhere()

    def rest(self) -> None:
        """Need the memory no more, and keep it until the other side does."""
        self._ours.release()

    def leave(self) -> None:
        """Neither have nor want it any more. The worker has ended."""
        self._memory.release()
        self._ours.release()


def _owner_bytes(folder: Path) -> int:
    pid = owner_pid(folder)
    return 0 if pid is None else process_bytes(pid) or 0
