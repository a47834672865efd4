# SPDX-License-Identifier: Apache-2.0
"""Sensors read beside the loop: one that hangs holds nobody up, and what we use ourselves is not held against the
owner."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from devices.base import Facts
from devices.kinds.simulated import Simulated, Step
from edge_client.owner.sensing import OthersLoad, Sensed, Sensing, own_processes, process_seconds, processor_seconds
from fedcore.device.readings import Readings

COOL = Readings(temperatures_celsius={"cpu": 44.0}, on_mains=True)


class Machine:
    """Four processors and some processes, in numbers."""

    def __init__(self) -> None:
        self.busy = self.total = 1000.0
        self.total *= 4
        self.processes = {1: 50.0}

    def pass_time(self, seconds: float, *, others: float, **ours: float) -> None:
        """`others` and `ours` are processors kept busy."""
        self.total += 4 * seconds
        self.busy += (others + sum(ours.values())) * seconds
        for name, used in ours.items():
            pid = int(name.removeprefix("p"))
            self.processes[pid] = self.processes.get(pid, 0.0) + used * seconds

    def load(self, window_seconds: float = 20.0) -> OthersLoad:
        return OthersLoad(
            lambda: tuple(self.processes),
            processors=lambda: (self.busy, self.total),
            process=self.processes.get,
            window_seconds=window_seconds,
        )


def test_own_and_worker_time_is_not_others() -> None:
    machine = Machine()
    load = machine.load()
    assert load.sample(0.0) is None
    machine.pass_time(2.0, others=1.0, p1=0.1)
    assert load.sample(2.0) == pytest.approx(25.0)
    # A worker begins and keeps three processors busy; then it ends, and another begins under the same number of
    # seconds.
    machine.pass_time(2.0, others=1.0, p1=0.1, p2=2.9)
    assert load.sample(4.0) == pytest.approx(25.0)
    del machine.processes[2]
    machine.pass_time(2.0, others=1.0, p3=2.9)
    assert load.sample(6.0) == pytest.approx(25.0)


def test_the_mean_is_over_the_last_seconds() -> None:
    machine = Machine()
    load = machine.load()
    load.sample(0.0)
    for second in range(2, 42, 2):
        machine.pass_time(2.0, others=4.0)
        assert load.sample(float(second)) == pytest.approx(100.0)
    for second in range(42, 62, 2):
        machine.pass_time(2.0, others=0.0)
        assert load.sample(float(second)) == pytest.approx(100.0 * (60 - second) / 20)
    # A clock of the kernel that stands still tells nothing.
    still = machine.load()
    still.sample(0.0)
    assert still.sample(2.0) is None


def test_a_real_process_that_uses_a_processor_is_others_until_it_is_ours() -> None:
    load, also_ours = OthersLoad(lambda: (os.getpid(),)), OthersLoad(own_processes)
    spin = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        assert set(own_processes()) >= {os.getpid(), spin.pid}
        for one in (load, also_ours):
            one.sample(time.monotonic())
        began = process_seconds(spin.pid)
        time.sleep(1.0)
        found, without = load.sample(time.monotonic()), also_ours.sample(time.monotonic())
        used = process_seconds(spin.pid)
    finally:
        spin.kill()
        spin.wait()
    assert began is not None and used is not None and found is not None and without is not None
    # As much less as it used, whatever else runs on this machine.
    share = 100 * (used - began) / (os.cpu_count() or 1)
    assert used - began > 0.2 and found - without == pytest.approx(share, abs=8)
    assert process_seconds(spin.pid) is None
    busy, total = processor_seconds()
    assert 0 < busy < total


class Hanging:
    """A device whose sensor hangs after its first answers."""

    def __init__(self, answers: int) -> None:
        self.answers, self.release, self.closed = answers, threading.Event(), threading.Event()

    @property
    def facts(self) -> Facts:
        return Facts("simulated", "hanging")

    def read(self) -> Readings:
        if self.answers == 0:
            self.release.wait(30)
        self.answers -= 1
        return COOL

    def close(self) -> None:
        self.closed.set()


def test_readings_come_and_the_device_is_closed_in_the_end() -> None:
    device = Hanging(10_000)
    sensing = Sensing(device, lambda: True, interval_seconds=0.01)
    assert sensing.latest() == Sensed()
    sensing.start()
    assert sensing.wait(5.0)
    found = sensing.latest()
    assert found.readings == COOL and found.others_percent is not None
    sensing.stop()
    assert device.closed.is_set()


def test_a_sensor_that_hangs_holds_nobody_up_and_its_last_word_grows_old() -> None:
    device, now = Hanging(2), [0.0]
    sensing = Sensing(device, lambda: True, interval_seconds=0.01, clock=lambda: now[0])
    sensing.start()
    assert sensing.wait(5.0) and sensing.latest().readings == COOL
    now[0] = 16.0
    assert sensing.latest() == Sensed()
    began = time.monotonic()
    sensing.stop()
    assert time.monotonic() - began < 60.0, "it is released below"
    device.release.set()
    assert device.closed.wait(5.0)


def test_the_first_word_is_not_waited_for_without_end() -> None:
    device = Hanging(0)
    sensing = Sensing(device, lambda: True)
    sensing.start()
    assert not sensing.wait(0.1) and sensing.latest() == Sensed()
    device.release.set()
    sensing.stop()


def test_a_simulated_device_is_read_like_any_other() -> None:
    sensing = Sensing(Simulated([Step(0.0, COOL)]), lambda: False, interval_seconds=0.01)
    sensing.start()
    # Nobody asks how busy others are.
    assert sensing.wait(5.0) and sensing.latest() == Sensed(COOL)
    sensing.stop()
