# SPDX-License-Identifier: Apache-2.0
"""A worker that adds up pieces of sums, of all runs in a database whose folders it sees."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from coordinator.store.folder import RunFolder
from coordinator.store.places import Database
from coordinator.sums.adder import piece_file, task_file
from coordinator.sums.queue import Claim, Queue
from coordinator.sums.task import Task, read_task
from fedcore.errors import FedkrsoError, RunError

__all__ = ["SumWorker"]

_LOOK_SECONDS: Final = 5.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0


class SumWorker:
    """Takes pieces until it is stopped. It may be killed at any time: the database gives its piece to another.

    Args:
        database: Where pieces are handed out.
        runs: Folder of runs, the same that their coordinators have.
        tell: Told in one line what happens.
    """

    def __init__(self, database: Database, runs: Path, tell: Callable[[str], None]) -> None:
        self._database, self._runs, self._tell = database, runs, tell
        self._stopping = threading.Event()
        self._task: tuple[str, Task] | None = None
        """The last one, by its SHA-256: its other pieces are likely next."""
        self.done = 0
        """Pieces that it has added up."""

    def stop(self) -> None:
        """Leave when the piece that it is at is done (safe to call from a signal handler)."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until stopped, also over times in which the database is away."""
        pause, told = _FIRST_PAUSE_SECONDS, False
        while not self._stopping.is_set():
            try:
                with Queue(self._database) as queue:
                    self._tell(f"takes pieces from {self._database.place}")
                    pause, told = _FIRST_PAUSE_SECONDS, False
                    while not self._stopping.is_set():
                        if not self._turn(queue):
                            queue.wait(_LOOK_SECONDS)
            except RunError as error:
                if not told:
                    self._tell(f"waits for the database: {error.one_line()}")
                told = True
                self._stopping.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _turn(self, queue: Queue) -> bool:
        """Add one piece up; False where there is none."""
        here = [path.parent.name for path in self._runs.glob("*/sums")]
        with queue.claimed(here) as claim:
            if claim is None:
                return False
            self._work(claim)
            return True

    def _work(self, claim: Claim) -> None:
        folder = RunFolder(self._runs / claim.run)
        try:
            if self._task is None or self._task[0] != claim.task_sha256:
                self._task = claim.task_sha256, read_task(task_file(folder, claim.task), folder.root, claim.task_sha256)
            claim.sha256 = self._task[1].work(claim.piece, piece_file(folder, claim.task, claim.piece))
            self.done += 1
        except (FedkrsoError, OSError) as error:
            claim.failed = error.one_line() if isinstance(error, FedkrsoError) else str(error)
            self._tell(f"run {claim.run}: piece {claim.piece.block}-{claim.piece.shard}: {claim.failed}")
