# SPDX-License-Identifier: Apache-2.0
"""Memory readings on Linux, from the kernel's own files.

A process' use is its proportional set size (PSS): pages shared by agent and worker count once between them, where RSS would
count them twice. psutil gives the resident size where PSS is not to be had.
"""

from __future__ import annotations

import re
from pathlib import Path

import psutil

from fedcore.config import parse_size
from fedcore.errors import BudgetError, ConfigError

__all__ = ["budget_bytes", "own_peak_rss_bytes", "own_rss_bytes", "process_bytes"]

_AUTO_SHARE = 0.6
_LEAST_BUDGET_BYTES = 256 * 2**20


def process_bytes(pid: int) -> int | None:
    """Proportional set size of a process in bytes; resident size where the kernel does not tell; None if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def own_rss_bytes() -> int:
    """This process' resident size."""
    return int(psutil.Process().memory_info().rss)


def own_peak_rss_bytes() -> int | None:
    """This process' highest resident size so far (VmHWM)."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def budget_bytes(text: str, *, place: str = "memory_budget") -> int:
    """The budget for agent and worker together.

    Args:
        text: A size (`2.5 GiB`), a share of the device's memory (`60%`), or `auto`: 60 % of what is available now.
        place: Named in errors.

    Raises:
        ConfigError: Not a budget.
        BudgetError: Less than the training runtime alone needs, or more than the device has.
    """
    memory = psutil.virtual_memory()
    if text == "auto":
        return int(memory.available * _AUTO_SHARE)
    if found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text):
        share = float(found.group(1))
        if not 0 < share <= 100:
            raise ConfigError(f"{share:g}% is outside 0 to 100", place=place)
        return int(memory.total * share / 100)
    size = parse_size(text, place=place)
    if size < _LEAST_BUDGET_BYTES:
        raise BudgetError(
            f"{size / 2**20:.0f} MiB is less than the {_LEAST_BUDGET_BYTES / 2**20:.0f} MiB that the training runtime alone needs",
            place=place,
            remedy="raise it",
        )
    if size > memory.total:
        raise BudgetError(f"{text} is more than this device's {memory.total / 2**30:.1f} GiB", place=place, remedy="lower it")
    return size
