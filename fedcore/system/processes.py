# SPDX-License-Identifier: Apache-2.0
"""Child processes: which interpreter they get, and that they do not outlive their parent."""

from __future__ import annotations

import ctypes
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["WORKER_PYTHON", "die_with_parent", "limited", "worker_python"]

WORKER_PYTHON: Final = "FEDKRSO_WORKER_PYTHON"
"""Environment variable that names the interpreter of workers."""
_UNTOUCHED_BYTES: Final = 140 * 2**20
_STACK_BYTES: Final = 8 * 2**20


def worker_python(environment: Mapping[str, str]) -> str:
    """The interpreter that has torch: this one, or the one that the environment names.

    A board's own torch often lives in another environment than the agent, which needs none.

    Example:
        >>> worker_python({"FEDKRSO_WORKER_PYTHON": "/opt/torch/bin/python"})
        '/opt/torch/bin/python'
    """
    return environment.get(WORKER_PYTHON) or sys.executable


def limited(memory_bytes: int, threads: int) -> Callable[[], None]:
    """For a child before exec: what ends it with its parent, and makes allocations beyond a limit fail (RLIMIT_DATA;
    Linux only). What a worker asks for and does not touch comes on top, as `edge_client.memory.group` measured it.

    Args:
        memory_bytes: That it may use.
        threads: That it computes with.
    """
    soft = memory_bytes + _UNTOUCHED_BYTES + 2 * _STACK_BYTES * threads

    def prepare() -> None:
        if sys.platform == "linux":
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(
                resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
            )
        die_with_parent()

    return prepare


def die_with_parent() -> None:
    """In a child before exec: end (SIGTERM) when the thread that started it ends, however that happens. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
