# SPDX-License-Identifier: Apache-2.0
"""One command to a worker process of its own: what somebody without torch asks of it."""

from __future__ import annotations

import queue
from pathlib import Path

from fedcore.errors import WorkerError
from fedcore.worker.failures import error_of
from fedcore.worker.messages import Command, Event, Failed
from fedcore.worker.process import WorkerDied, WorkerProcess

__all__ = ["ask_worker"]


def ask_worker(command: Command, log: Path, timeout_seconds: float = 300.0) -> Event:
    """One command to a fresh worker; its answer.

    Raises:
        FedkrsoError: What the worker could not do, or that it died.
    """
    events: queue.Queue[Event | WorkerDied] = queue.Queue()
    worker = WorkerProcess(events.put, log)
    try:
        worker.send(command)
        answer = events.get(timeout=timeout_seconds)
    except queue.Empty:
        raise WorkerError(f"no answer within {timeout_seconds:.0f} s", place=str(log)) from None
    finally:
        worker.stop()
    if isinstance(answer, WorkerDied):
        last = answer.tail.splitlines()[-1] if answer.tail else "no output"
        raise WorkerError(
            f"the worker ended with {answer.returncode}: {last}", place=str(log), remedy="pip install 'fedkrso[train]'"
        )
    if isinstance(answer, Failed):
        raise error_of(answer)
    return answer
