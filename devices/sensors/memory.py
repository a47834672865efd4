# SPDX-License-Identifier: Apache-2.0
"""Memory from /proc/meminfo. On unified memory this is all there is: CUDA's own "free" counts page cache as used and is
not asked."""

from __future__ import annotations

import re
from pathlib import Path

from devices.files import read_bytes

__all__ = ["memory_bytes"]

_LINE = re.compile(rb"^(MemTotal|MemAvailable): +(\d{1,15}) kB$", re.MULTILINE)


def memory_bytes(root: Path) -> tuple[int | None, int | None]:
    """What the system sees in all, and what can be had without swapping; None for what the kernel does not tell.

    Example:
        >>> total, available = memory_bytes(Path("/"))
        >>> total is None or available is None or available <= total
        True
    """
    found = {name: int(value) * 1024 for name, value in _LINE.findall(read_bytes(root / "proc/meminfo", 4096) or b"")}
    total, available = found.get(b"MemTotal") or None, found.get(b"MemAvailable")
    if total is not None and available is not None and available > total:
        return None, None  # one of the two is wrong, and nothing says which
    return total, available
