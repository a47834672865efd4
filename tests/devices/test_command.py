# SPDX-License-Identifier: Apache-2.0
"""`python -m devices` as somebody with a new board runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from devices.detection import detect
from devices.record import recorded
from tests.devices.recordings import Recording, recording

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "devices", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_this_machine_is_shown() -> None:
    done = run("--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (
        found["facts"]["name"] and found["readings"]["memory_total_bytes"] == found["facts"]["memory_total_bytes"] > 0
    )
    assert 0 <= found["readings"]["processor_percent"] <= 100


def test_another_root_is_shown_for_a_person(tmp_path: Path) -> None:
    root = recording("jetson-orin-nano-jetpack-6").put(tmp_path)
    done = run("--root", root)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "catalogue jetson-orin-nano-8gb" in lines and "system L4T 36.4.7 (JetPack 6)" in lines
    assert "memory total bytes 7,620 MiB" in lines and "power mode MAXN_SUPER" in lines and "battery percent -" in lines


@pytest.mark.parametrize(
    "name",
    ["jetson-orin-nano-jetpack-6", "jetson-nano-jetpack-4", "laptop-two-batteries", "raspberry-pi-4-under-voltage"],
)
def test_a_record_of_a_device_reads_like_the_device(name: str, tmp_path: Path) -> None:
    expected = recording(name)
    device = expected.device(tmp_path / "board")
    again = Recording(**tomllib.loads(recorded(tmp_path / "board", expected.run)))
    copy = detect(again.put(tmp_path / "copy"), again.run)
    found, wanted = copy.read(), device.read()
    assert copy.facts == device.facts
    # An empty folder is not recorded: without batteries, mains is not known.
    assert {**vars_of(found), "on_mains": None} == {**vars_of(wanted), "on_mains": None}


def vars_of(found: object) -> dict[str, object]:
    return {name: getattr(found, name) for name in found.__struct_fields__}  # type: ignore[attr-defined]


def test_a_record_has_no_serial_numbers(tmp_path: Path) -> None:
    battery = tmp_path / "sys/class/power_supply/BAT0"
    battery.mkdir(parents=True)
    (battery / "uevent").write_text(
        "POWER_SUPPLY_TYPE=Battery\nPOWER_SUPPLY_SERIAL_NUMBER= 2958\nPOWER_SUPPLY_CAPACITY=9\n"
    )
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("Model\t: Raspberry Pi 5\nSerial\t\t: 10000000abcdef\n")
    text = recorded(tmp_path, lambda command, timeout_seconds: None)
    assert "2958" not in text and "abcdef" not in text and "CAPACITY=9" in text
    assert set(tomllib.loads(text)["files"]) == {"proc/cpuinfo", "sys/class/power_supply/BAT0/uevent"}
    done = run("--root", tmp_path, "--record", tmp_path / "board.toml")
    assert done.returncode == 0 and (tmp_path / "board.toml").read_text() == text
