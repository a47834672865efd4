# SPDX-License-Identifier: Apache-2.0
"""Real programs that are slow, hang, die or talk: reading a sensor never waits for one, and none outlives its
device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from devices.base import Host
from devices.detection import detect
from devices.kinds import jetson
from devices.programs import Seldom, run_program
from devices.sensors.nvidia_smi import NvidiaGpu
from devices.sensors.tegrastats import Tegrastats
from tests.devices.recordings import recording


def wait(until: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def idle() -> None:
    """No reading is under way in the background."""
    wait(lambda: not any(thread.name == "device reading" for thread in threading.enumerate()))


def sleepers() -> list[psutil.Process]:
    """The children of this process that run `sleep`, which ours do when they have said what they say."""
    found = []
    for child in psutil.Process().children():
        try:
            if "sleep" in child.cmdline():
                found.append(child)
        except (psutil.ZombieProcess, psutil.NoSuchProcess):
            continue
    return found


def program(folder: Path, text: str) -> str:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_program_is_run_and_ended_at_its_limit(tmp_path: Path) -> None:
    assert run_program([program(tmp_path, "echo $LC_ALL")], 10.0) == "C\n"
    assert run_program([program(tmp_path, "echo half; exit 3")], 10.0) is None
    assert run_program([str(tmp_path / "nothing")], 10.0) is None
    before = time.monotonic()
    assert run_program([program(tmp_path, "exec sleep 60")], 0.2) is None
    assert time.monotonic() - before < 10
    assert not sleepers()


def test_a_value_is_found_in_the_background_and_grows_old() -> None:
    times, answers, gate = [0.0], [1, None, 3], threading.Event()

    def find() -> int | None:
        gate.wait(120)
        return answers.pop(0)

    seldom = Seldom(find, lambda found: 10.0, clock=lambda: times[0])
    before = time.monotonic()
    assert seldom.latest() is None and seldom.latest() is None  # one search at a time
    assert time.monotonic() - before < 5
    gate.set()
    wait(lambda: seldom.latest() == 1)
    idle()
    times[0] = 9.0
    assert seldom.latest() == 1 and len(answers) == 2
    times[0] = 10.0
    seldom.latest()
    wait(lambda: len(answers) == 1)
    idle()
    times[0] = 19.0  # the failure was at 10, the next attempt comes 10 later
    assert seldom.latest() == 1 and len(answers) == 1
    gate.clear()
    times[0] = 31.0  # three pauses without a new value
    assert seldom.latest() is None
    gate.set()
    wait(lambda: seldom.latest() == 3)


def test_nvidia_smi_that_hangs_never_stops_a_reading(tmp_path: Path) -> None:
    """It answers when the device is found, then hangs: the last answer counts for a while, then nothing."""
    expected, times, released = recording("laptop-nvidia"), [0.0], threading.Event()
    asked = []

    def run(command: Sequence[str], timeout_seconds: float) -> str | None:
        asked.append(command)
        if len(asked) > 2:
            released.wait(120)
            return None
        return expected.run(command, timeout_seconds)

    device = detect(expected.put(tmp_path), run, clock=lambda: times[0])
    try:
        for times[0], percent in ((0.0, 37.0), (6.0, 37.0), (14.0, 37.0), (16.0, None), (100.0, None)):
            before = time.monotonic()
            found = device.read()
            assert time.monotonic() - before < 5 and found.accelerator_percent == percent
            assert found.battery_percent == 73.0 and found.accelerator_total_bytes == 8188 * 2**20
        assert len(asked) == 3
    finally:
        released.set()


def test_a_sleeping_gpu_is_left_alone_and_an_idle_one_is_asked_rarely(tmp_path: Path) -> None:
    expected, times, asked = recording("laptop-nvidia"), [0.0], []
    idle = {command: text.replace(" 37,", " 0,") for command, text in expected.programs.items()}

    def run(command: Sequence[str], timeout_seconds: float) -> str | None:
        asked.append(command)
        return idle.get(" ".join(command))

    gpu = NvidiaGpu.found(expected.put(tmp_path), run, lambda: times[0])
    assert gpu is not None and len(asked) == 2
    state = tmp_path / "sys/bus/pci/devices/0000:01:00.0/power/runtime_status"
    times[0] = 29.0
    assert gpu.read() is not None and len(asked) == 2
    state.write_text("suspended\n")
    times[0] = 1000.0
    assert gpu.read() is None and len(asked) == 2
    state.write_text("active\n")
    gpu.read()
    wait(lambda: len(asked) == 3 and gpu.read() is not None)


def test_tegrastats_is_followed_started_again_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = recording("jetson-orin-nano-jetpack-6").tegrastats
    times = [0.0]
    monkeypatch.chdir(tmp_path)
    stats = Tegrastats(
        [program(tmp_path, f'echo "$@" >arguments; echo "{line}"; printf "RAM 1/"; exec sleep 60')], lambda: times[0]
    )
    wait(lambda: stats.latest() is not None)
    found = stats.latest()
    assert found is not None and found.rails_watts["VDD_IN"] == 5.704 and found.memory_total_bytes == 7620 * 2**20
    assert (tmp_path / "arguments").read_text() == "--interval 2000\n"
    times[0] = 11.0
    assert stats.latest() is None  # a line is not for ever
    # The shell becomes the sleeper a moment after its line.
    wait(lambda: len(sleepers()) == 1)
    (child,) = sleepers()
    child.kill()
    wait(lambda: stats.latest() is None and not sleepers())
    times[0] = 50.0
    assert stats.latest() is None
    times[0] = 61.0
    wait(lambda: stats.latest() is not None and len(sleepers()) == 1)
    (child,) = sleepers()
    stats.close()
    assert not child.is_running()
    times[0] = 1000.0
    assert stats.latest() is None


def test_tegrastats_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    stats = Tegrastats([str(tmp_path / "nothing")])
    assert stats.latest() is None and stats.latest() is None
    stats.close()


@pytest.mark.parametrize(
    ("removed", "watts", "load", "runs_on"),
    [("none", 5.704, 0.0, False), ("hwmon", 5.704, 0.0, True), ("devfreq", 5.704, 0.0, True)],
)
def test_a_jetson_asks_tegrastats_only_for_what_its_files_do_not_tell(
    removed: str, watts: float, load: float, runs_on: bool, tmp_path: Path
) -> None:
    expected = recording("jetson-orin-nano-jetpack-6")
    command = program(tmp_path, f'echo "{expected.tegrastats}"; exec sleep 60')
    root = expected.put(tmp_path / "root")
    for path in (root / "sys/class" / removed).rglob("*"):
        if path.is_file():
            path.unlink()
    device = jetson.detect(Host(root, expected.run, (command,)))
    assert isinstance(device, jetson.Jetson)
    try:
        wait(lambda: device.read().power_watts is not None and device.read().accelerator_percent is not None)
        found = device.read()
        assert (found.power_watts, found.accelerator_percent) == (pytest.approx(watts, abs=0.02), load)
        wait(lambda: bool(sleepers()) == runs_on)
    finally:
        device.close()
    assert not sleepers()


def test_tegrastats_that_knows_no_more_than_the_files_is_ended(tmp_path: Path) -> None:
    """Thor's line has no load of the GPU, and its files have the power already."""
    expected = recording("jetson-thor-jetpack-7.1")
    command = program(tmp_path, f'echo "{expected.tegrastats}"; exec sleep 60')
    device = jetson.detect(Host(expected.put(tmp_path / "root"), expected.run, (command,)))
    assert device is not None
    device.read()
    wait(lambda: device.read() is not None and not sleepers())
    assert device.read().power_watts == 19.78 and device.read().accelerator_percent is None
    device.close()


def test_a_jetson_in_a_container_without_a_device_tree_is_one(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("5.15.148-tegra\n")
    facts = detect(tmp_path).facts
    assert (facts.kind, facts.name, facts.catalogue, facts.accelerator) == ("jetson", "NVIDIA Jetson", None, None)
