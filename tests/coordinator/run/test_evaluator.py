# SPDX-License-Identifier: Apache-2.0
"""What the evaluation process is told: the way to each version from wherever it stands, also after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import coordinator.run.evaluator
from coordinator.job import EvaluationSection
from coordinator.run.evaluator import Evaluator
from fedcore.errors import WorkerError
from fedcore.fields.manifest import Manifest
from fedcore.round.plan import StateObject
from fedcore.worker.messages import Adopt, Evaluate, Evaluated, Ready
from fedcore.worker.process import WorkerDied


class Recorder:
    """In place of a worker process: what it is sent."""

    last_pid = 0

    def __init__(self, *arguments: object, **options: object) -> None:
        self.sent: list[Any] = []
        self.ended = False
        Recorder.last_pid += 1
        self.pid = Recorder.last_pid

    def dismiss(self) -> None:
        self.ended = True

    def send(self, command: object) -> None:
        self.sent.append(command)


def published(version: int, generation: int, size: int = 100, *, snapshot: bool = False) -> StateObject:
    return StateObject(version, generation, None, f"d{version}", Manifest("o", size, "0", 64), snapshot)


def path(obj: StateObject) -> Path:
    return Path(f"{obj.version}-{obj.kind}")


class Clock:
    """Seconds that a test turns."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def evaluator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock) -> Evaluator:
    monkeypatch.setattr(coordinator.run.evaluator, "WorkerProcess", Recorder)
    monkeypatch.setattr(coordinator.run.evaluator, "Configure", lambda **fields: "configure")
    data = EvaluationSection(source="held.csv", metrics=("f1",))
    return Evaluator(lambda event: None, None, "t", data, "", tmp_path, clock=clock)  # type: ignore[arg-type]


def told(evaluator: Evaluator) -> list[str]:
    """What was sent since the last look."""
    recorder: Any = evaluator._worker
    sent, recorder.sent = recorder.sent, []
    return [
        str(c.path) if isinstance(c, Adopt) else f"evaluate {c.version}" if isinstance(c, Evaluate) else c for c in sent
    ]


def answer(version: int) -> Evaluated:
    return Evaluated(version, 1.0, 0.0, {})


def test_a_fresh_process_goes_from_version_to_version(evaluator: Evaluator) -> None:
    first, second = published(1, 0), published(2, 1)
    evaluator.evaluate((1, 0), (first,), path)
    # Nothing before it has said where it stands.
    assert told(evaluator) == ["configure"] and evaluator.pending == 1 and evaluator.reading == {first}
    evaluator.ready(Ready(0, 0, "", 9))
    assert told(evaluator) == ["1-whole", "evaluate 1"]
    evaluator.evaluate((2, 1), (first, second), path)
    assert told(evaluator) == ["2-whole", "evaluate 2"] and evaluator.pending == 2
    evaluator.done(answer(1))
    assert evaluator.pending == 1 and evaluator.reading == {first, second}
    evaluator.done(answer(2))
    assert evaluator.pending == 0 and not evaluator.reading


def test_a_process_that_is_behind_catches_up_before_it_measures(evaluator: Evaluator) -> None:
    ends = tuple(published(v, v - 1) for v in range(4, 7))
    objects = (published(4, 4, 150, snapshot=True), *ends, published(7, 6))
    evaluator.evaluate((7, 6), objects, path)
    evaluator.evaluate((8, 7), (*objects, published(8, 7)), path)
    evaluator.ready(Ready(1, 0, "", 9))
    assert told(evaluator) == [
        "configure",
        "4-snapshot",
        "5-whole",
        "6-whole",
        "7-whole",
        "evaluate 7",
        "8-whole",
        "evaluate 8",
    ]


def test_no_way_is_an_error_and_not_a_wrong_number(evaluator: Evaluator) -> None:
    evaluator.evaluate((7, 6), (published(7, 6),), path)
    with pytest.raises(WorkerError, match=r"from \(1, 0\) to \(7, 6\)"):
        evaluator.ready(Ready(1, 0, "", 9))


def test_a_process_that_is_not_asked_for_long_ends_and_another_measures_what_comes(
    evaluator: Evaluator, clock: Clock
) -> None:
    worker: Any = evaluator._worker
    clock.seconds += 3
    evaluator.tick()
    assert not worker.ended, "it is still loading"
    evaluator.ready(Ready(0, 0, "", 9))
    evaluator.evaluate((1, 0), (published(1, 0),), path)
    clock.seconds += 1000
    evaluator.tick()
    assert not worker.ended, "it measures"
    evaluator.done(answer(1))
    clock.seconds += 20 * 3 - 1
    evaluator.tick()
    assert not worker.ended
    clock.seconds += 2
    evaluator.tick()
    evaluator.tick()
    assert worker.ended and evaluator._worker is None
    evaluator.evaluate((2, 1), (published(1, 0), published(2, 1)), path)
    # The end of the first one comes when the second is there already.
    evaluator.died(WorkerDied(worker.pid, 0, ""))
    assert told(evaluator) == ["configure"]
    evaluator.ready(Ready(1, 0, "", 9))
    assert told(evaluator) == ["2-whole", "evaluate 2"]


def test_a_process_that_ends_by_itself_ends_the_run(evaluator: Evaluator) -> None:
    worker: Any = evaluator._worker
    with pytest.raises(WorkerError, match="ended with -9: out of memory"):
        evaluator.died(WorkerDied(worker.pid, -9, "loading\nout of memory"))
