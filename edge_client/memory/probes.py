# SPDX-License-Identifier: Apache-2.0
"""Memory readings on Linux, from the kernel's own files. What cannot be read is None, never a number.

A process' use is its proportional set size (PSS): pages shared by agent and worker count once between them, where RSS would
count them twice. psutil gives the resident size where PSS is not to be had. `root` stands for `/`, so that tests can show another
machine's files.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = [
    "Pressure",
    "ProcessMemory",
    "available_bytes",
    "own_peak_rss_bytes",
    "own_rss_bytes",
    "pressure",
    "process_bytes",
    "process_memory",
    "total_bytes",
]

_ROOT = Path("/")


@dataclass(frozen=True)
class ProcessMemory:
    """What a process uses. Anonymous memory is its own; file-backed pages can be dropped and read again."""

    total_bytes: int
    anonymous_bytes: int | None
    file_bytes: int | None


@dataclass(frozen=True)
class Pressure:
    """Memory pressure: per cent of the last ten seconds in which some, or all, tasks waited for memory."""

    some_percent: float
    full_percent: float


def process_memory(pid: int, root: Path = _ROOT) -> ProcessMemory | None:
    """A process' proportional set size, its kinds apart where the kernel tells; None if it is gone."""
    fields = _kilobytes(root / "proc" / str(pid) / "smaps_rollup")
    if "Pss" in fields:
        anonymous, file, shared = (fields.get(key) for key in ("Pss_Anon", "Pss_File", "Pss_Shmem"))
        return ProcessMemory(fields["Pss"], anonymous, None if file is None else file + (shared or 0))
    fields = _kilobytes(root / "proc" / str(pid) / "status")
    if "VmRSS" in fields:
        file = fields.get("RssFile")
        return ProcessMemory(fields["VmRSS"], fields.get("RssAnon"), None if file is None else file + fields.get("RssShmem", 0))
    return None


def process_bytes(pid: int) -> int | None:
    """A process' proportional set size, or its resident size where the kernel does not tell; None if it is gone."""
    found = process_memory(pid)
    if found is not None:
        return found.total_bytes
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def own_rss_bytes() -> int:
    """This process' resident size."""
    return int(psutil.Process().memory_info().rss)


def own_peak_rss_bytes() -> int | None:
    """This process' highest resident size so far (VmHWM)."""
    return _kilobytes(_ROOT / "proc" / str(os.getpid()) / "status").get("VmHWM")


def available_bytes(root: Path = _ROOT) -> int | None:
    """What the device could still give without swapping (MemAvailable); on unified memory the accelerator's share is in it."""
    return _kilobytes(root / "proc" / "meminfo").get("MemAvailable")


def total_bytes(root: Path = _ROOT) -> int | None:
    """The device's memory less what the firmware keeps (MemTotal)."""
    return _kilobytes(root / "proc" / "meminfo").get("MemTotal")


def pressure(cgroup: Path | None = None, root: Path = _ROOT) -> Pressure | None:
    """Memory pressure of a cgroup, or of the device; None where the kernel does not count it."""
    for path in ([cgroup / "memory.pressure"] if cgroup is not None else []) + [root / "proc" / "pressure" / "memory"]:
        try:
            found = dict(re.findall(r"^(some|full) avg10=([\d.]+)", path.read_text(encoding="ascii"), re.MULTILINE))
        except (OSError, ValueError):
            continue
        if "some" in found:
            return Pressure(float(found["some"]), float(found.get("full", 0.0)))
    return None


def _kilobytes(path: Path) -> dict[str, int]:
    """The `Name:  123 kB` lines of a file of /proc, in bytes; nothing where it cannot be read."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {name: int(value) * 1024 for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
