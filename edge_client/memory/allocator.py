# SPDX-License-Identifier: Apache-2.0
"""How the worker's allocator is set: freed memory that it keeps is the largest single item on processors (design 4)."""

from __future__ import annotations

__all__ = ["ALLOCATORS"]

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
