# SPDX-License-Identifier: Apache-2.0
"""`tegrastats`: its line, and the program as a source where the system's files do not tell what it tells.

The line has no specification and changes with every release: a date in front or not, SWAP or not, cores that are `off`,
the GPU as `0%`, `0%@[305]` or only `@[314,314,314]`, temperatures once or twice, power with or without `mW`, as two or
three numbers."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from devices.checking import plausible_temperatures
from devices.sensors.temperature import sensor_name

__all__ = ["Tegrastats", "TegrastatsLine", "parse_tegrastats"]

_RAM = re.compile(r"\bRAM (\d{1,9})/(\d{1,9})MB")
_CORES = re.compile(r"\bCPU \[([^\]]*)\]")
_CORE = re.compile(r"(\d{1,3})%@\d+")
_GPU = re.compile(r"\bGR3D(?:_FREQ)? (\d{1,3})%")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][\w.-]*)@(-?\d{1,4}(?:\.\d{1,6})?)C(?:/-?\d{1,4}(?:\.\d{1,6})?C)?(?!\S)")
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (\d{1,9})(?:mW)?/\d{1,9}(?:mW)?(?:/\d{1,9}(?:mW)?)?(?!\S)")
# 100 degrees always on some releases, 50 on others; an estimate for the fan.
_NO_SENSORS = frozenset({"pmic", "thermal"})
_INTERVAL_MILLISECONDS = 2000
_KEEP_SECONDS = 10.0
_RESTART_SECONDS = 60.0
_MOST_BYTES = 65_536


@dataclass(frozen=True)
class TegrastatsLine:
    """What one line tells; None and empty is what it does not."""

    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    processor_percent: float | None = None
    """Mean over the cores that are on."""
    gpu_percent: float | None = None
    temperatures_celsius: dict[str, float] = field(default_factory=dict)
    rails_watts: dict[str, float] = field(default_factory=dict)


def parse_tegrastats(line: str) -> TegrastatsLine:
    """What a line tells, whatever else is in it.

    Example:
        >>> line = "RAM 2639/7620MB (lfb 9x4MB) CPU [1%@729,off] GR3D_FREQ @[314] gpu@45.9C VDD_IN 5263mW/5263mW"
        >>> found = parse_tegrastats(line)
        >>> found.processor_percent, found.gpu_percent, found.temperatures_celsius, found.rails_watts
        (1.0, None, {'gpu': 45.9}, {'VDD_IN': 5.263})
    """
    ram, cores, gpu = _RAM.search(line), _CORES.search(line), _GPU.search(line)
    loads = [int(load) for load in _CORE.findall(cores.group(1))] if cores else []
    used, total = (int(ram.group(1)) * 2**20, int(ram.group(2)) * 2**20) if ram else (None, None)
    temperatures = {
        sensor_name(name): float(value) for name, value in _TEMPERATURE.findall(line) if name.lower() not in _NO_SENSORS
    }
    gpu_percent = float(gpu.group(1)) if gpu else None
    return TegrastatsLine(
        used if total and used is not None and used <= total else None,
        total or None,
        sum(loads) / len(loads) if loads and max(loads) <= 100 else None,
        gpu_percent if gpu_percent is None or gpu_percent <= 100 else None,
        plausible_temperatures(temperatures),
        {name: int(milliwatts) / 1000 for name, milliwatts in _RAIL.findall(line) if name != "NC"},
    )


class Tegrastats:
    """The program, started once and read without waiting. When it ends it is started again, at most once a minute.

    Args:
        command: The program; what it needs to print a line every two seconds is added.
        clock: Seconds, never backwards.
    """

    def __init__(self, command: Sequence[str] = ("tegrastats",), clock: Callable[[], float] = time.monotonic) -> None:
        self._command, self._clock = [*command, "--interval", str(_INTERVAL_MILLISECONDS)], clock
        self._child: subprocess.Popen[bytes] | None = None
        self._start_at = clock()
        self._rest = b""
        self._line: TegrastatsLine | None = None
        self._until = clock()

    def latest(self) -> TegrastatsLine | None:
        """The last line, if it is not older than ten seconds."""
        now = self._clock()
        if self._child is None:
            self._start(now)
        if self._child is not None:
            self._take(now)
        return self._line if now <= self._until else None

    def close(self) -> None:
        """End the program."""
        child, self._child = self._child, None
        self._start_at = float("inf")
        if child is None:
            return
        child.terminate()
        try:
            child.wait(1.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        assert child.stdout is not None
        child.stdout.close()

    def _start(self, now: float) -> None:
        if now < self._start_at:
            return
        self._start_at, self._rest = now + _RESTART_SECONDS, b""
        try:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        except (OSError, ValueError):
            return
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)

    def _take(self, now: float) -> None:
        """Everything that it has printed; of it the last whole line."""
        assert self._child is not None and self._child.stdout is not None
        ended = False
        try:
            while piece := os.read(self._child.stdout.fileno(), _MOST_BYTES):
                self._rest = (self._rest + piece)[-_MOST_BYTES:]
            ended = True
        except BlockingIOError:
            pass
        *lines, self._rest = self._rest.split(b"\n")
        if lines:
            self._line, self._until = parse_tegrastats(lines[-1].decode("ascii", "replace")), now + _KEEP_SECONDS
        if ended and self._child.poll() is not None:
            self._child.stdout.close()
            self._child = None
