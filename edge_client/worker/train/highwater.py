# SPDX-License-Identifier: Apache-2.0
"""This process' own memory and its high-water mark, as the kernel counts them. Linux; elsewhere None."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

__all__ = ["begin_peak", "give_back_freed_memory", "is_out_of_memory", "peak_bytes", "status_bytes"]

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "error 12",
    "nvml_success",
)


def begin_peak() -> None:
    """Begin a new high-water mark; where the kernel refuses, the old one goes on."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_bytes() -> int | None:
    """Highest resident size since `begin_peak`."""
    return status_bytes("VmHWM")


def status_bytes(field: str) -> int | None:
    """A field of /proc/self/status (`VmRSS`, `RssAnon`, `RssFile`) in bytes, or None."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def give_back_freed_memory() -> None:
    """Have glibc return what was freed to the system; elsewhere nothing."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in any of the ways in which torch and drivers say it."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(word in str(error).lower() for word in _OUT_OF_MEMORY)
