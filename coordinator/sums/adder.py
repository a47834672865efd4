# SPDX-License-Identifier: Apache-2.0
"""The coordinator's side of a sum that others help with.

It needs none of them: what nobody takes, what fails, and whatever is left when the database is away it adds up by
itself, to the same bits. Each piece enters the sum once, and only as a whole."""

from __future__ import annotations

import contextlib
import math
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.rounds.section import AggregationSection
from coordinator.store.folder import RunFolder
from coordinator.store.places import Database, database_of, require_package
from coordinator.sums.task import Task, write_task
from fedcore.errors import ExactnessError, RunError, StorageError
from fedcore.model.pieces import Piece, add_piece, take_sum
from fedcore.model.update import Adder, WeightedUpdate, add_updates
from fedcore.numbers.accumulator import RunningSum
from fedcore.round.plan import Plan

if TYPE_CHECKING:
    from coordinator.sums.queue import Queue

__all__ = ["WorkersAdd", "adder_of", "piece_file", "task_file"]

_PATIENCE_SECONDS: Final = 1.0
"""For workers to take what is there, before the coordinator does too."""
_STUCK_SECONDS: Final = 300.0
"""Without any piece: whoever is at the rest hangs."""


def adder_of(section: AggregationSection | None, folder: RunFolder, tell: Callable[[str], None]) -> Adder:
    """Who adds a run's updates up: its coordinator, or workers too where the job says so and the ledger's database is
    there to hand work out.

    Args:
        section: Of the job.
        folder: The run's.
        tell: Told in one line when the coordinator is left to itself.

    Raises:
        ConfigError: The database cannot be spoken to from here.
    """
    database = database_of(folder)
    if section is None or database is None:
        return add_updates
    require_package()
    return WorkersAdd(section, folder, database, tell)


def task_file(folder: RunFolder, task: str) -> Path:
    """Where a task lies."""
    return _sums(folder) / task / "task"


def piece_file(folder: RunFolder, task: str, piece: Piece) -> Path:
    """Where what a piece came to lies."""
    return _sums(folder) / task / f"{piece.block}-{piece.shard}.npz"


def _sums(folder: RunFolder) -> Path:
    """There while a sum is handed out: workers look there for work (`coordinator.sums.worker`)."""
    return folder.root / "sums"


class WorkersAdd:
    """See `fedcore.model.update.Adder`.

    Args:
        section: Of the job.
        folder: The run's, which workers see too.
        database: Hands out the pieces.
        tell: Told in one line when the coordinator is left to itself.
        patience_seconds: For workers, before the coordinator works too.
    """

    def __init__(
        self,
        section: AggregationSection,
        folder: RunFolder,
        database: Database,
        tell: Callable[[str], None] = lambda line: None,
        *,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._section, self._folder, self._database, self._tell = section, folder, database, tell
        self._patience_seconds = patience_seconds
        self.taken = 0
        """Pieces that came from workers, in all rounds."""

    def __call__(self, updates: Sequence[WeightedUpdate], plan: Plan, total: RunningSum) -> None:
        """Add updates to the exact sum."""
        shapes = plan.training.update_shapes(plan.model_schema).values()
        if len(updates) * sum(map(math.prod, shapes)) < self._section.least_numbers:
            add_updates(updates, plan, total)
            return
        for update in updates:
            total.add_examples(update.weight)
        task = Task.of(plan, updates, self._section.pieces)
        left = set(task.cut.pieces())
        try:
            with self._handed_out(task, left) as (queue, name):
                self._gather(queue, name, task, left, total)
        except (RunError, StorageError, OSError) as error:
            if left:
                self._tell(f"{len(left)} pieces of round {plan.round}'s sum are added up here: {error}")
        for piece in sorted(left):
            add_piece(updates, plan, task.cut, piece, total)

    @contextlib.contextmanager
    def _handed_out(self, task: Task, pieces: set[Piece]) -> Iterator[tuple[Queue, str]]:
        from coordinator.sums.queue import Queue

        folder, run = self._folder, self._folder.root.name
        # An earlier life's, which was killed.
        shutil.rmtree(_sums(folder), ignore_errors=True)
        name = f"{task.plan.round}-{secrets.token_hex(8)}"
        file = task_file(folder, name)
        file.parent.mkdir(parents=True)
        try:
            sha256 = write_task(file, folder.root, task.plan, task.updates, self._section.pieces)
            with Queue(self._database) as queue:
                queue.drop(run)
                queue.hand_out(run, name, sha256, sorted(pieces))
                yield queue, name
                queue.drop(run)
        finally:
            shutil.rmtree(_sums(folder), ignore_errors=True)

    def _gather(self, queue: Queue, name: str, task: Task, left: set[Piece], total: RunningSum) -> None:
        """Take what comes, and work too where nobody does, until nothing is left or nothing comes any more."""
        moved_at = time.monotonic()
        while left:
            came = [(piece, sha256) for piece, sha256 in queue.ended(name) if piece in left]
            for piece, sha256 in came:
                self._take(name, task, piece, sha256, total)
                left.discard(piece)
                moved_at = time.monotonic()
            waited = time.monotonic() - moved_at
            if came or not left:
                continue
            if waited > _STUCK_SECONDS:
                raise RunError(f"no worker has ended a piece for {waited:.0f} s", place=self._database.place)
            if waited >= self._patience_seconds:
                with queue.claimed([self._folder.root.name], name) as claim:
                    if claim is not None:
                        add_piece(task.updates, task.plan, task.cut, claim.piece, total)
                        left.discard(claim.piece)
                        claim.failed = "the coordinator did it"
                        continue
            queue.wait(0.2)

    def _take(self, name: str, task: Task, piece: Piece, sha256: str | None, total: RunningSum) -> None:
        """Add what a worker came to; or, where that cannot be used, the piece itself."""
        try:
            if sha256 is None:
                raise ExactnessError("a worker failed at a piece")
            names = task.cut.blocks[piece.block]
            take_sum(piece_file(self._folder, name, piece), sha256, task.plan, names, total)
            self.taken += 1
        except ExactnessError as error:
            self._tell(f"a piece of round {task.plan.round}'s sum is added up here: {error.one_line()}")
            add_piece(task.updates, task.plan, task.cut, piece, total)
