# SPDX-License-Identifier: Apache-2.0
"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import signal
import sys

__all__ = ["die_with_parent"]


def die_with_parent() -> None:
    """In a child before exec: end (SIGTERM) when the thread that started it ends, however that happens. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
