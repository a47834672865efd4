# SPDX-License-Identifier: Apache-2.0
"""Evaluation in a process of its own: the coordinator needs no torch, and a slow evaluation stops no round. Between
measurements that are far apart there is no such process, and none of its memory."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from coordinator.job import EvaluationSection
from fedcore.errors import WorkerError
from fedcore.round.plan import Plan, Position, StateObject, cheapest_way
from fedcore.worker.messages import Adopt, Configure, Evaluate, Evaluated, Event, Ready
from fedcore.worker.process import WorkerDied, WorkerProcess

__all__ = ["Evaluator"]

# A process that nobody asks ends after so many times what its start takes: at worst a twentieth of the time goes into
# starts, and a run whose rounds take minutes has its hundreds of megabytes only while it measures.
_IDLE_STARTS = 20.0


class Evaluator:
    """The evaluation process: there from the run's begin, so that what it cannot read is said before a round is
    trained, and whenever something is measured.

    Args:
        sink: Gets its events, from a thread.
        plan: Any plan of the run.
        run: Run name.
        data: Held-out data.
        model_folder: The checkpoint.
        folder: Its own folder.
        artefact: File of the run's artefact, where the plan names one.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        sink: Callable[[Event | WorkerDied], None],
        plan: Plan,
        run: str,
        data: EvaluationSection,
        model_folder: str,
        folder: Path,
        artefact: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._configure = Configure(
            plan=plan,
            run=run,
            node="evaluator",
            model_folder=model_folder,
            data=data.data,
            metrics=data.metrics,
            rows=data.rows,
            share_seed=data.share_seed,
            max_new_tokens=data.max_new_tokens,
            folder=str(folder),
            threads=max(1, (os.cpu_count() or 1) // 2),
            artefact="" if artefact is None else str(artefact),
        )
        self._sink, self._log, self._clock = sink, folder / "worker.log", clock
        self._asked: deque[tuple[Position, tuple[StateObject, ...], Callable[[StateObject], Path]]] = deque()
        self._worker: WorkerProcess | None = None
        self._dismissed: set[int] = set()
        self._start()

    def _start(self) -> None:
        self._held: Position | None = None
        self._sent = 0
        self._began_at = self._idle_since = self._clock()
        self._start_seconds = 0.0
        self._worker = WorkerProcess(self._sink, self._log, environment={"OMP_WAIT_POLICY": "PASSIVE"})
        self._worker.send(self._configure)

    @property
    def pending(self) -> int:
        """Evaluations whose answer has not come."""
        return len(self._asked)

    @property
    def reading(self) -> set[StateObject]:
        """Objects that the process may still read."""
        return {obj for _, objects, _ in self._asked for obj in objects}

    def ready(self, event: Ready) -> None:
        """The process is loaded; after a restart it may hold an older version."""
        self._held = event.version, event.generation
        self._idle_since = self._clock()
        self._start_seconds = self._idle_since - self._began_at
        self._send()

    def evaluate(self, goal: Position, objects: tuple[StateObject, ...], path: Callable[[StateObject], Path]) -> None:
        """Queue the evaluation of a version, which the process reaches from wherever it stands.

        Args:
            goal: Version and generation.
            objects: Published ones that lead there.
            path: An object's file.
        """
        self._asked.append((goal, objects, path))
        if self._worker is None:
            self._start()
        self._send()

    def _send(self) -> None:
        if self._held is None or self._worker is None:
            return
        for goal, objects, path in list(self._asked)[self._sent :]:
            way = cheapest_way(objects, goal, self._held)
            if way is None:
                raise WorkerError(f"nothing published leads the evaluation process from {self._held} to {goal}")
            for obj in way:
                self._worker.send(Adopt(str(path(obj)), obj.version, obj.generation, obj.kind, obj.digest))
            self._worker.send(Evaluate(goal[0]))
            self._held = goal
            self._sent += 1

    def done(self, event: Evaluated) -> None:
        """Note that the evaluation process has answered."""
        del event
        self._asked.popleft()
        self._sent -= 1
        self._idle_since = self._clock()

    def tick(self) -> None:
        """Let the process go, where nothing was asked of it for long."""
        if self._worker is None or self._held is None or self._asked:
            return
        if self._clock() - self._idle_since >= _IDLE_STARTS * self._start_seconds:
            self._dismissed.add(self._worker.pid)
            self._worker.dismiss()
            self._worker = self._held = None

    def died(self, event: WorkerDied) -> None:
        """A process of it ended.

        Raises:
            WorkerError: It was not let go.
        """
        if event.pid not in self._dismissed:
            last = event.tail.splitlines()[-1] if event.tail else "no output"
            raise WorkerError(f"the evaluation process ended with {event.returncode}: {last}")
        self._dismissed.remove(event.pid)

    def stop(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.stop()
