# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from devices.base import Facts
from devices.detection import detect
from devices.kinds.simulated import SIMULATED_FILE, Simulated, SimulatedFile, Step, write_simulated
from fedcore.device.readings import Readings

HOT, COOL = Readings(temperatures_celsius={"cpu": 91.0}), Readings(temperatures_celsius={"cpu": 44.0})


def test_readings_follow_the_script() -> None:
    times = [100.0]
    device = Simulated([Step(5, HOT), Step(9, COOL)], Facts("simulated", "board 7"), lambda: times[0])
    found = []
    for times[0] in (100.0, 104.9, 105.0, 108.0, 109.0, 500.0):
        found.append(device.read().hottest_celsius)
    assert found == [None, None, 91.0, 91.0, 44.0, 44.0] and device.facts.name == "board 7"


def test_a_folder_is_followed_as_its_file_changes(tmp_path: Path) -> None:
    write_simulated(tmp_path, SimulatedFile("board 8", 4 * 2**30, (Step(0, HOT),)))
    device = detect(tmp_path)
    assert (device.facts.kind, device.facts.name, device.facts.memory_total_bytes) == (
        "simulated",
        "board 8",
        4 * 2**30,
    )
    assert device.read() == HOT
    write_simulated(tmp_path, SimulatedFile(steps=(Step(0, COOL),)))
    assert device.read() == COOL
    (tmp_path / SIMULATED_FILE).write_text('{"steps": [{"readings": {"power_watts": "much"}}]}')
    assert device.read() == Readings()
    (tmp_path / SIMULATED_FILE).unlink()
    assert device.read() == Readings() and device.read() == Readings()
    write_simulated(tmp_path, SimulatedFile(steps=(Step(0, HOT),)))
    assert device.read() == HOT
    device.close()


@pytest.mark.parametrize("text", ["", "{", "\xff", '{"steps": [{"after_seconds": -1}]}', '{"speed": 3}', "[]"])
def test_a_damaged_file_says_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / SIMULATED_FILE).write_bytes(text.encode("latin-1"))
    device = detect(tmp_path)
    assert device.facts.kind == "simulated" and device.read() == Readings()
