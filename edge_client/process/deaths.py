# SPDX-License-Identifier: Apache-2.0
"""Why a worker died: one that was killed for its memory goes on one step lower, any other one as before."""

from __future__ import annotations

import signal

from edge_client.memory.monitor import Reading
from fedcore.worker.process import WorkerDied

__all__ = ["ending", "killed_for_memory"]

_SAID = ("memoryerror", "out of memory", "allocate memory")
# Below this share of the device's memory, a kill that nobody counted was for memory.
_SHORT_SHARE = 0.05


def ending(event: WorkerDied) -> str:
    """How it ended.

    Example:
        >>> ending(WorkerDied(7, -9, "")), ending(WorkerDied(7, 1, "ValueError: x"))
        ('signal 9', 'exit code 1')
    """
    return f"signal {-event.returncode}" if event.returncode < 0 else f"exit code {event.returncode}"


def killed_for_memory(event: WorkerDied, kills: int | None, last: Reading | None, budget_bytes: int) -> bool:
    """Whether it was memory that ended it.

    Args:
        event: Its end.
        kills: How often the kernel killed in its memory group; None where nobody counts.
        last: The last sample before.
        budget_bytes: For agent and worker together.

    Example:
        >>> killed_for_memory(WorkerDied(7, 1, "MemoryError"), None, None, 10**9)
        True
    """
    if event.returncode != -signal.SIGKILL:
        said = event.tail.lower()
        return any(words in said for words in _SAID)
    if kills:
        return True
    if last is None:
        return False
    left = last.device_available_bytes
    short = left is not None and left < _SHORT_SHARE * (last.device_total_bytes or 0)
    return short or last.used_bytes > budget_bytes
