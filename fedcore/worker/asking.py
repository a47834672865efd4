# SPDX-License-Identifier: Apache-2.0
"""One command to a worker process of its own: what somebody without torch asks of it."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path

import psutil

from fedcore.errors import WorkerError
from fedcore.system.processes import die_with_parent
from fedcore.worker.failures import error_of
from fedcore.worker.messages import Command, Event, Failed
from fedcore.worker.process import WorkerDied, WorkerProcess

__all__ = ["ask_worker"]

# Of the time that passed: what uses less of a processor only waits.
_WORKING_SHARE = 0.01


def ask_worker(
    command: Command, log: Path, quiet_seconds: float = 300.0, prepare: Callable[[], None] = die_with_parent
) -> Event:
    """One command to a fresh worker; its answer.

    A slow machine is waited for as long as it works: only who does nothing for a while is given up.

    Args:
        command: What it is to do.
        log: File for the worker's own output.
        quiet_seconds: How long it may neither answer nor work.
        prepare: Called in the child before the program starts.

    Raises:
        FedkrsoError: What the worker could not do, or that it died or hangs.
    """
    events: queue.Queue[Event | WorkerDied] = queue.Queue()
    worker = WorkerProcess(events.put, log, prepare=prepare)
    try:
        worker.send(command)
        answer = _answer(events, worker.pid, quiet_seconds, log)
    finally:
        worker.stop()
    if isinstance(answer, WorkerDied):
        raise WorkerError(f"the worker {answer.words}", place=str(log), remedy="pip install 'fedkrso[train]'")
    if isinstance(answer, Failed):
        raise error_of(answer)
    return answer


def _answer(events: queue.Queue[Event | WorkerDied], pid: int, quiet_seconds: float, log: Path) -> Event | WorkerDied:
    used = 0.0
    while True:
        try:
            return events.get(timeout=quiet_seconds)
        except queue.Empty:
            before, used = used, _processor_seconds(pid)
            if used - before < _WORKING_SHARE * quiet_seconds:
                raise WorkerError(f"the worker has done nothing for {quiet_seconds:.0f} s", place=str(log)) from None


def _processor_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
