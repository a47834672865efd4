# SPDX-License-Identifier: Apache-2.0
"""How busy processors and a Jetson's GPU are."""

from __future__ import annotations

import re
from pathlib import Path

from devices.files import folder_names, read_bytes, read_number

__all__ = ["ProcessorLoad", "TegraGpuLoad"]

_TOTALS = re.compile(rb"^cpu +(\d+(?: \d+){3,9})$", re.MULTILINE)
# User, nice, system, idle, waiting for disks, interrupts, soft interrupts, stolen. Guests are in user already.
_IDLE, _WAITING, _FIELDS = 3, 4, 8
# nvgpu's folder from JetPack 4 to 7; devfreq has a link to it in most releases.
_GPU_FOLDERS = (
    "sys/devices/gpu.0",
    "sys/devices/platform/gpu.0",
    "sys/devices/platform/bus@0/17000000.gpu",
    "sys/devices/platform/17000000.gpu",
    "sys/devices/platform/17000000.ga10b",
    "sys/devices/17000000.gv11b",
    "sys/devices/17000000.gp10b",
    "sys/devices/57000000.gpu",
)
_GPU_NAMES = re.compile(r".+\.(?:gpu|ga10b|gv11b|gp10b|gm20b)")


class ProcessorLoad:
    """Share of the processors' time that was used since the reading before."""

    def __init__(self, root: Path) -> None:
        self._path = str(root / "proc/stat")
        self._before: tuple[int, int] | None = None
        self._last: float | None = None

    def percent(self) -> float | None:
        """Load of all processors in per cent; None at the first reading, which has none before it."""
        found = _TOTALS.search(read_bytes(self._path, 2048) or b"")
        if found is None:
            self._before = self._last = None
            return None
        numbers = [int(text) for text in found.group(1).split()[:_FIELDS]]
        total, unused = sum(numbers), sum(numbers[_IDLE : _WAITING + 1])
        if self._before is None:
            self._before = (total, unused)
            return None
        if total == self._before[0]:  # read twice within one tick of the kernel's clock
            return self._last
        passed, rested = total - self._before[0], unused - self._before[1]
        self._before = (total, unused)
        # The kernel's idle counters may step back a little.
        self._last = None if passed < 0 else min(100.0, max(0.0, 100.0 * (passed - rested) / passed))
        return self._last


class TegraGpuLoad:
    """Load of a Jetson's GPU where the driver is nvgpu; a file of per mille. With Thor's driver there is none."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path: str | None = None

    def scan(self) -> None:
        """Look for the file again."""
        devfreq = self._root / "sys/class/devfreq"
        linked = [str(devfreq / name / "device") for name in folder_names(devfreq) or () if _GPU_NAMES.fullmatch(name)]
        for folder in [*linked, *(str(self._root / name) for name in _GPU_FOLDERS)]:
            if read_number(f"{folder}/load") is not None:
                self._path = f"{folder}/load"
                return
        self._path = None

    def percent(self) -> float | None:
        """Busy share of the GPU."""
        load = read_number(self._path) if self._path is not None else None
        return None if load is None or not 0 <= load <= 1000 else load / 10
