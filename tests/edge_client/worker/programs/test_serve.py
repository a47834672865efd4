# SPDX-License-Identifier: Apache-2.0
"""A worker process and what reaches it through its pipe."""

from __future__ import annotations

import queue
from pathlib import Path

import msgspec

from fedcore.worker.messages import StepDown
from fedcore.worker.process import WorkerDied, WorkerProcess


class _Unknown(msgspec.Struct, frozen=True, tag="of_a_later_version"):
    number: int = 1


def test_a_command_that_cannot_be_read_ends_the_worker_at_once_and_says_why(tmp_path: Path) -> None:
    events: queue.Queue[object] = queue.Queue()
    worker = WorkerProcess(events.put, tmp_path / "log", environment={"HF_HUB_OFFLINE": "1"})
    try:
        # The first is read before the worker serves, the second by the thread that reads while it works.
        worker.send(StepDown(0))
        worker.send(_Unknown())  # type: ignore[arg-type]
        # Its pipe stays open: without an end of its own it would wait for ever.
        died = events.get(timeout=120)
    finally:
        worker.stop()
    assert isinstance(died, WorkerDied) and died.returncode == 1
    assert "of_a_later_version" in died.tail
