# SPDX-License-Identifier: Apache-2.0
"""A device whose readings are given: for simulations, and for tests of everything that depends on a reading.

As an object it has one reading after another by time. As a folder, for processes of their own, it is a root with a file
`simulated.json`, which is read again whenever it changes:

    {"name": "hot board", "steps": [{"after_seconds": 0, "readings": {"temperatures_celsius": {"cpu": 91}}},
                                    {"after_seconds": 5, "readings": {"temperatures_celsius": {"cpu": 44}}}]}
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from devices.base import Device, Facts, Host
from devices.files import read_bytes
from fedcore.device.readings import Readings

__all__ = ["SIMULATED_FILE", "Simulated", "SimulatedFile", "Step", "detect", "write_simulated"]

SIMULATED_FILE = "simulated.json"


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the sensors say from a time on."""

    after_seconds: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    """Since the device was first read."""
    readings: Readings = Readings()


class SimulatedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `simulated.json`."""

    name: Annotated[str, Meta(min_length=1, max_length=100)] = "simulated device"
    memory_total_bytes: Annotated[int, Meta(ge=0, le=2**60)] | None = None
    steps: tuple[Step, ...] = ()


class Simulated:
    """A device made up.

    Args:
        steps: What it says, by time; before the first, and with none, it says nothing.
        facts: What it is.
        clock: Seconds, never backwards.

    Example:
        >>> times = iter([0.0, 0.0, 6.0])
        >>> hot, cool = Readings(temperatures_celsius={"cpu": 91}), Readings(temperatures_celsius={"cpu": 44})
        >>> device = Simulated([Step(0, hot), Step(5, cool)], clock=lambda: next(times))
        >>> device.read().hottest_celsius, device.read().hottest_celsius
        (91, 44)
    """

    def __init__(
        self, steps: Sequence[Step] = (), facts: Facts | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._steps, self._clock = sorted(steps, key=lambda step: step.after_seconds), clock
        self._facts = facts if facts is not None else Facts("simulated", "simulated device")
        self._started: float | None = None

    @property
    def facts(self) -> Facts:
        """What it is said to be."""
        return self._facts

    def read(self) -> Readings:
        """What the last step up to now says."""
        if self._started is None:
            self._started = self._clock()
        passed = self._clock() - self._started
        return next((step.readings for step in reversed(self._steps) if step.after_seconds <= passed), Readings())

    def close(self) -> None:
        """Nothing of it runs."""


class _Folder:
    """A simulated device that follows its file."""

    def __init__(self, host: Host) -> None:
        self._path, self._clock = host.root / SIMULATED_FILE, host.clock
        self._stamp: tuple[int, int, int] | None = None
        self._device = Simulated(clock=self._clock)
        self._follow()

    @property
    def facts(self) -> Facts:
        """What the file said first."""
        return self._device.facts

    def read(self) -> Readings:
        """What the file says now; a changed file starts its time anew, a damaged one says nothing."""
        self._follow()
        return self._device.read()

    def close(self) -> None:
        """Nothing of it runs."""

    def _follow(self) -> None:
        try:
            status = self._path.stat()
            stamp: tuple[int, int, int] | None = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            stamp = None
        if stamp == self._stamp and stamp is not None:
            return
        self._stamp = stamp
        try:
            said = msgspec.json.decode(read_bytes(self._path, 2**20) or b"", type=SimulatedFile)
            facts = Facts("simulated", said.name, memory_total_bytes=said.memory_total_bytes)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
            said, facts = SimulatedFile(), self._device.facts
        self._device = Simulated(said.steps, facts, self._clock)


def write_simulated(root: Path, said: SimulatedFile) -> None:
    """Write a simulated device's file in one step, so that no reader sees half of it.

    Args:
        root: The folder that `devices.detection.detect` gets as root.
        said: Its content.
    """
    root.mkdir(parents=True, exist_ok=True)
    fresh = root / f"{SIMULATED_FILE}.new"
    fresh.write_bytes(msgspec.json.encode(said))
    fresh.replace(root / SIMULATED_FILE)


def detect(host: Host) -> Device | None:
    """The simulated device, if the root has its file; never on the real `/`."""
    if host.root == Path("/") or not (host.root / SIMULATED_FILE).is_file():
        return None
    return _Folder(host)
