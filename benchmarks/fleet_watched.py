# SPDX-License-Identifier: Apache-2.0
"""What coordinator and broker of a simulated fleet take of the machine, while they run."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

__all__ = ["Watched", "broker_pid"]


class Watched:
    """A process' memory and processor time, sampled until it ends."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.peak_bytes = 0
        self.processor_seconds = 0.0

    def sample(self) -> None:
        """Take another reading; one of a process that is gone changes nothing."""
        try:
            self.peak_bytes = max(
                self.peak_bytes, self._process.memory_info().rss, _high_water_bytes(self._process.pid)
            )
            times = self._process.cpu_times()
        except (psutil.NoSuchProcess, OSError):
            return
        self.processor_seconds = times.user + times.system


def broker_pid() -> int:
    """The broker that this process started."""
    names = ("mosquitto", "nats-server")
    return next(child.pid for child in psutil.Process().children() if child.name() in names)


def _high_water_bytes(pid: int) -> int:
    """The kernel's own record of a process' largest resident size, so that nothing hides between two samples; 0 where
    there is none."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0
