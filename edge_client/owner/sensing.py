# SPDX-License-Identifier: Apache-2.0
"""The device's sensors and how busy others keep its processors, read in a thread of its own.

A sensor can hang: a driver that answers late, a program that does not end. The agent's loop must turn all the same, so
it never reads one itself: it gets the last readings, or None once they are old."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from devices.base import Device
from fedcore.device.readings import Readings

__all__ = ["OthersLoad", "Sensed", "Sensing", "own_processes", "process_seconds", "processor_seconds"]

_INTERVAL_SECONDS = 2.0
# The first share of the processors is of a shorter time, so that a node need not wait for it.
_FIRST_SECONDS = 0.5
# Others' load is a mean over so long: whoever types uses the processors in bursts.
_WINDOW_SECONDS = 20.0
_OLD_SECONDS = 15.0


def processor_seconds() -> tuple[float, float]:
    """Seconds that all processors together were busy since the system started, and seconds in all.

    Waiting for a disk is not busy, and what a hypervisor gave to others (`steal`) is no program of this machine.
    """
    times = psutil.cpu_times()._asdict()
    # A guest's time is part of `user` and `nice` already.
    total = sum(seconds for kind, seconds in times.items() if kind not in ("guest", "guest_nice"))
    return total - sum(times.get(kind, 0.0) for kind in ("idle", "iowait", "steal")), total


def own_processes() -> tuple[int, ...]:
    """This process and all that it started: the worker, and what that one starts to measure how it computes best."""
    try:
        return os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))
    except psutil.Error:
        # One ended just then.
        return (os.getpid(),)


def process_seconds(pid: int) -> float | None:
    """Processor time of a process so far; None if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


class OthersLoad:
    """What other programs use of all processors: everything less what our own processes use.

    Args:
        ours: Ids of our own processes.
        processors: Seconds busy and seconds in all, of all processors.
        process: A process' seconds; None if it is gone.
        window_seconds: The mean is over so long.
    """

    def __init__(
        self,
        ours: Callable[[], tuple[int, ...]],
        *,
        processors: Callable[[], tuple[float, float]] = processor_seconds,
        process: Callable[[int], float | None] = process_seconds,
        window_seconds: float = _WINDOW_SECONDS,
    ) -> None:
        self._ours, self._processors, self._process, self._window = ours, processors, process, window_seconds
        self._our_seconds: dict[int, float] = {}
        self._our_total = 0.0
        self._samples: deque[tuple[float, float, float, float]] = deque()

    def sample(self, at_seconds: float) -> float | None:
        """Percent of all processors; None for the first sample."""
        now = {pid: seconds for pid in self._ours() if (seconds := self._process(pid)) is not None}
        # By process: one that has ended takes nothing back, one that has begun counts from nothing.
        self._our_total += sum(max(0.0, seconds - self._our_seconds.get(pid, 0.0)) for pid, seconds in now.items())
        self._our_seconds = now
        self._samples.append((at_seconds, *self._processors(), self._our_total))
        while len(self._samples) > 2 and self._samples[1][0] <= at_seconds - self._window:
            self._samples.popleft()
        (_, busy_then, total_then, ours_then), (_, busy, total, ours) = self._samples[0], self._samples[-1]
        if total <= total_then:
            return None
        return min(100.0, max(0.0, 100 * (busy - busy_then - (ours - ours_then)) / (total - total_then)))


@dataclass(frozen=True)
class Sensed:
    """What is known now; None is unknown."""

    readings: Readings | None = None
    others_percent: float | None = None


class Sensing:
    """Reads a device again and again.

    Args:
        device: The device.
        wants_load: Whether anybody asks how busy others keep the processors: finding our own processes takes some
            milliseconds.
        interval_seconds: Between two readings.
        clock: Seconds, never backwards.
    """

    def __init__(
        self,
        device: Device,
        wants_load: Callable[[], bool],
        *,
        interval_seconds: float = _INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device, self._interval, self._clock = device, interval_seconds, clock
        self._load, self._wants_load = OthersLoad(own_processes), wants_load
        self._last: tuple[float, Sensed] | None = None
        self._told, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="sensing", daemon=True)

    def start(self) -> None:
        """Begin to read the sensors, in a thread of their own."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more, and close the device; a sensor that hangs is not waited for."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def wait(self, seconds: float) -> bool:
        """Wait until there is a first word of everything; whether there is."""
        return self._told.wait(seconds)

    def latest(self) -> Sensed:
        """The last readings, or nothing where they are old."""
        last = self._last
        return last[1] if last is not None and self._clock() - last[0] <= _OLD_SECONDS else Sensed()

    def _run(self) -> None:
        others, pause = self._others(), _FIRST_SECONDS
        self._last = self._clock(), Sensed(self._device.read(), others)
        while not self._stopping.wait(min(pause, self._interval)):
            others, pause = self._others(), self._interval
            self._last = self._clock(), Sensed(self._device.read(), others)
            self._told.set()
        # Here, since nobody else may use the device while it is read.
        self._device.close()

    def _others(self) -> float | None:
        if self._wants_load():
            return self._load.sample(self._clock())
        self._load = OthersLoad(own_processes)
        return None
