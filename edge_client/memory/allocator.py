# SPDX-License-Identifier: Apache-2.0
"""How the allocators of worker and agent are set: freed memory that one keeps is the largest single item on processors (design 4)."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["ALLOCATORS", "keep_agent_small"]

# glibc's mallopt numbers.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

# Environment of the worker. Tuned: whatever is larger than 64 KiB goes back to the system when it is freed, and the heap is
# not kept either. Huge pages (glibc 2.35; older ones ignore it) take back a fifth of what the page faults cost.
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    },
}


def keep_agent_small() -> None:
    """Have this process keep no freed memory and share one heap between its threads (glibc; elsewhere nothing). Before the first thread."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 65_536), (_M_TRIM_THRESHOLD, 65_536)):
            libc.mallopt(option, value)
