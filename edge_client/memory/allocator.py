# SPDX-License-Identifier: Apache-2.0
"""How the allocators of worker and agent are set: freed memory that one keeps is the largest single item on processors
(design 4)."""

from __future__ import annotations

import ctypes

from fedcore.device.memoryplan import Allocator

__all__ = ["ALLOCATORS", "keep_agent_small", "set_thresholds"]

# glibc's mallopt numbers.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# From which size on memory comes from the system by itself, and how much free memory at the heap's end is kept;
# default: where glibc's own adaptation ends.
_THRESHOLDS: dict[Allocator, tuple[int, int]] = {"tuned": (65_536, 65_536), "default": (32 * 2**20, 64 * 2**20)}

# Environment of the worker. Tuned: whatever is larger than 64 KiB goes back to the system when it is freed, and the
# heap is not kept either. Huge pages (glibc 2.35; older ones ignore it) take back a fifth of what the page faults cost.
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    },
}


def set_thresholds(allocator: Allocator) -> None:
    """Have this process' allocator keep freed memory, or give it back from now on (glibc; elsewhere nothing)."""
    mmap_bytes, trim_bytes = _THRESHOLDS[allocator]
    _mallopt((_M_MMAP_THRESHOLD, mmap_bytes), (_M_TRIM_THRESHOLD, trim_bytes))


def keep_agent_small() -> None:
    """Have this process keep no freed memory and share one heap between its threads (glibc; elsewhere nothing). Before
    the first thread."""
    _mallopt((_M_ARENA_MAX, 1))
    set_thresholds("tuned")


def _mallopt(*settings: tuple[int, int]) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in settings:
            libc.mallopt(option, value)
