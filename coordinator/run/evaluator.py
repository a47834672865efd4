# SPDX-License-Identifier: Apache-2.0
"""Evaluation in a process of its own: the coordinator needs no torch, and a slow evaluation stops no round."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from coordinator.job import EvaluationSection
from fedcore.errors import WorkerError
from fedcore.round.plan import Plan, Position, StateObject, cheapest_way
from fedcore.worker.messages import Adopt, Configure, Evaluate, Evaluated, Event, Ready
from fedcore.worker.process import WorkerDied, WorkerProcess

__all__ = ["Evaluator"]


class Evaluator:
    """A warm evaluation process.

    Args:
        sink: Gets its events, from a thread.
        plan: Any plan of the run.
        run: Run name.
        data: Held-out data.
        model_folder: The checkpoint.
        folder: Its own folder.
        artefact: File of the run's artefact, where the plan names one.
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
    ) -> None:
        self._worker = WorkerProcess(sink, folder / "worker.log", environment={"OMP_WAIT_POLICY": "PASSIVE"})
        threads = max(1, (os.cpu_count() or 1) // 2)
        self._worker.send(
            Configure(
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
                threads=threads,
                artefact="" if artefact is None else str(artefact),
            )
        )
        self._held: Position | None = None
        self._asked: deque[tuple[Position, tuple[StateObject, ...], Callable[[StateObject], Path]]] = deque()
        self._sent = 0

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
        self._send()

    def evaluate(self, goal: Position, objects: tuple[StateObject, ...], path: Callable[[StateObject], Path]) -> None:
        """Queue the evaluation of a version, which the process reaches from wherever it stands.

        Args:
            goal: Version and generation.
            objects: Published ones that lead there.
            path: An object's file.
        """
        self._asked.append((goal, objects, path))
        self._send()

    def _send(self) -> None:
        if self._held is None:
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

    def stop(self) -> None:
        """End the process."""
        self._worker.stop()
