# SPDX-License-Identifier: Apache-2.0
"""Child processes: which interpreter they get, and that they do not outlive their parent."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Mapping
from typing import Final

__all__ = ["WORKER_PYTHON", "die_with_parent", "worker_python"]

WORKER_PYTHON: Final = "FEDKRSO_WORKER_PYTHON"
"""Environment variable that names the interpreter of workers."""


def worker_python(environment: Mapping[str, str]) -> str:
    """The interpreter that has torch: this one, or the one that the environment names.

    A board's own torch often lives in another environment than the agent, which needs none.

    Example:
        >>> worker_python({"FEDKRSO_WORKER_PYTHON": "/opt/torch/bin/python"})
        '/opt/torch/bin/python'
    """
    return environment.get(WORKER_PYTHON) or sys.executable


def die_with_parent() -> None:
    """In a child before exec: end (SIGTERM) when the thread that started it ends, however that happens. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
