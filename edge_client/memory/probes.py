# SPDX-License-Identifier: Apache-2.0
"""Memory readings on Linux, from the kernel's own files. What cannot be read is None, never a number.

A process' use is its proportional set size (PSS): pages shared by agent and worker count once between them, where RSS
would count them twice. psutil gives the resident size where PSS is not to be had. `root` stands for `/`, so that tests
can show another machine's files.

What one reading costs (two slow cores, a worker of 500 MB): `smaps_rollup` 5.9 ms of processor time, growing with the
process, since the kernel walks its page tables; `status` 0.04 ms whatever the size; pressure and available memory 0.05
ms. So a large process is read exactly now and then, and followed by its resident size in between: `Sampler`."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = [
    "Pressure",
    "ProcessMemory",
    "Sampler",
    "available_bytes",
    "own_peak_rss_bytes",
    "own_rss_bytes",
    "pressure",
    "process_bytes",
    "process_memory",
    "swap_in_pages",
    "total_bytes",
]

_ROOT = Path("/")


@dataclass(frozen=True)
class ProcessMemory:
    """What a process uses; None is unknown.

    Attributes:
        total_bytes: Resident, each shared page counted in part where the kernel tells (PSS), whole where it does not
            (RSS).
        anonymous_bytes: Its own memory, which only swap or its end gives back.
        file_bytes: Mapped files and shared memory; a file's clean pages can be dropped and read again.
        swap_bytes: Swapped out, not in the total.
    """

    total_bytes: int
    anonymous_bytes: int | None
    file_bytes: int | None
    swap_bytes: int | None = None


@dataclass(frozen=True)
class Pressure:
    """Memory pressure: per cent of the last ten seconds in which some, or all, tasks waited for memory."""

    some_percent: float
    full_percent: float | None
    """None on kernels that count only `some`."""


def process_memory(pid: int, root: Path = _ROOT) -> ProcessMemory | None:
    """A process' proportional set size, its kinds apart where the kernel tells; None if it is gone.

    Example:
        >>> found = process_memory(os.getpid())
        >>> found is None or found.total_bytes > 0
        True
    """
    exact = _kilobytes(root / "proc" / str(pid) / "smaps_rollup")
    if "Pss" not in exact:
        return _resident(pid, root)
    if "Pss_Anon" in exact:
        anonymous, file = exact["Pss_Anon"], exact.get("Pss_File")
        return ProcessMemory(exact["Pss"], anonymous, _sum(file, exact.get("Pss_Shmem")), exact.get("SwapPss"))
    # Before Linux 5.3 the kinds are not told apart here.
    kinds = _resident(pid, root)
    anonymous_bytes, file_bytes = (None, None) if kinds is None else (kinds.anonymous_bytes, kinds.file_bytes)
    return ProcessMemory(exact["Pss"], anonymous_bytes, file_bytes, exact.get("SwapPss"))


class Sampler:
    """Follows one process' memory at little cost.

    The exact reading is taken as often as it may cost `share` of a core; between two of them, the change of the
    resident size is added to the last one. Private memory, which is what grows, is followed exactly.

    Args:
        pid: The process.
        root: Of the file system.
        share: Of one core, for exact readings.
        clock: Seconds, never backwards.
        processor_clock: Seconds of processor time that this thread has used.

    Example:
        >>> sampler = Sampler(os.getpid())
        >>> found = sampler.sample()
        >>> found is None or found.total_bytes > 0
        True
    """

    def __init__(
        self,
        pid: int,
        root: Path = _ROOT,
        *,
        share: float = 0.003,
        clock: Callable[[], float] = time.monotonic,
        processor_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._pid, self._root, self._share = pid, root, share
        self._clock, self._processor_clock = clock, processor_clock
        self._exact: ProcessMemory | None = None
        self._resident_then: ProcessMemory | None = None
        self._exact_until = 0.0

    def sample(self) -> ProcessMemory | None:
        """What the process uses now; None if it is gone."""
        now = self._clock()
        resident = _resident(self._pid, self._root)
        if (
            self._exact is not None
            and self._resident_then is not None
            and resident is not None
            and now < self._exact_until
        ):
            return _moved(self._exact, self._resident_then, resident)
        started = self._processor_clock()
        self._exact, self._resident_then = process_memory(self._pid, self._root), resident
        self._exact_until = now + (self._processor_clock() - started) / self._share
        return self._exact


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
    """What the device could still give without swapping (MemAvailable); on unified memory the accelerator's share is in
    it."""
    return _kilobytes(root / "proc" / "meminfo").get("MemAvailable")


def total_bytes(root: Path = _ROOT) -> int | None:
    """The device's memory less what the firmware keeps (MemTotal)."""
    return _kilobytes(root / "proc" / "meminfo").get("MemTotal")


def swap_in_pages(root: Path = _ROOT) -> int | None:
    """Pages read back from swap since the device started (pswpin); its growth is an alarm, swap is never budget."""
    try:
        text = (root / "proc" / "vmstat").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^pswpin (\d+)$", text, re.MULTILINE)
    return int(found.group(1)) if found else None


def pressure(cgroup: Path | None = None, root: Path = _ROOT) -> Pressure | None:
    """Memory pressure of a cgroup, or of the device; None where the kernel does not count it."""
    for path in ([cgroup / "memory.pressure"] if cgroup is not None else []) + [root / "proc" / "pressure" / "memory"]:
        try:
            found = dict(re.findall(r"^(some|full) avg10=([\d.]+)", path.read_text(encoding="ascii"), re.MULTILINE))
        except (OSError, ValueError):
            continue
        if "some" in found:
            return Pressure(float(found["some"]), float(found["full"]) if "full" in found else None)
    return None


def _resident(pid: int, root: Path) -> ProcessMemory | None:
    """The resident size: cheap, shared pages counted whole."""
    fields = _kilobytes(root / "proc" / str(pid) / "status")
    if "VmRSS" not in fields:
        return None
    file = _sum(fields.get("RssFile"), fields.get("RssShmem"))
    return ProcessMemory(fields["VmRSS"], fields.get("RssAnon"), file, fields.get("VmSwap"))


def _moved(exact: ProcessMemory, then: ProcessMemory, now: ProcessMemory) -> ProcessMemory:
    """The exact reading, moved by how far the resident sizes have moved since."""

    def moved(was: int | None, before: int | None, after: int | None) -> int | None:
        return None if was is None or before is None or after is None else max(0, was + after - before)

    return ProcessMemory(
        max(0, exact.total_bytes + now.total_bytes - then.total_bytes),
        moved(exact.anonymous_bytes, then.anonymous_bytes, now.anonymous_bytes),
        moved(exact.file_bytes, then.file_bytes, now.file_bytes),
        moved(exact.swap_bytes, then.swap_bytes, now.swap_bytes),
    )


def _sum(file_bytes: int | None, shared_bytes: int | None) -> int | None:
    """Files and shared memory; unknown if the files are."""
    return None if file_bytes is None else file_bytes + (shared_bytes or 0)


def _kilobytes(path: Path) -> dict[str, int]:
    """The `Name:  123 kB` lines of a file of /proc, in bytes; nothing where it cannot be read."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {name: int(value) * 1024 for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
