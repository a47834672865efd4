# SPDX-License-Identifier: Apache-2.0
"""Every recorded device is found as what it is, and says exactly what its files say: nothing is missing and nothing
made up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from devices.catalogue import DEVICES
from devices.sensors.rails import board_watts
from devices.sensors.tegrastats import parse_tegrastats
from fedcore.device.readings import Readings
from tests.devices.recordings import NAMES, recording

LINES = [name for name in NAMES if recording(name).tegrastats]


def test_there_are_recordings_of_many_devices() -> None:
    kinds = {recording(name).facts["kind"] for name in NAMES}
    assert len(NAMES) >= 16 and kinds == {"jetson", "raspberry-pi", "laptop", "linux", "macos"}


@pytest.mark.parametrize("name", NAMES)
def test_the_device_is_what_it_is(name: str, tmp_path: Path) -> None:
    expected = recording(name)
    found = dataclasses.asdict(expected.device(tmp_path).facts)
    accelerator, known = found.pop("accelerator"), dict(expected.facts)
    wanted = known.pop("accelerator", None)
    assert {key: value for key, value in found.items() if value is not None and key in known} == known
    assert found["catalogue"] == known.get("catalogue") and (
        found["catalogue"] is None or found["catalogue"] in DEVICES
    )
    if wanted is None:
        assert accelerator is None
    else:
        capability = wanted.pop("compute_capability", None)
        assert accelerator == {
            "total_bytes": None,
            "compute_capability": tuple(capability) if capability else None,
            **wanted,
        }


@pytest.mark.parametrize("name", NAMES)
def test_the_reading_is_what_the_files_say(name: str, tmp_path: Path) -> None:
    expected = recording(name)
    device = expected.device(tmp_path)
    for _ in range(2):  # the second finds no event counter grown, and no load
        found = msgspec.structs.asdict(device.read())
        watts = found.pop("power_watts")
        # Milliamperes are whole numbers.
        assert watts == pytest.approx(expected.readings.get("power_watts"), abs=0.02)
        charge = found.pop("battery_percent")
        assert charge == pytest.approx(expected.readings.get("battery_percent"), abs=0.001)
        nothing = {**msgspec.structs.asdict(Readings()), "temperatures_celsius": {}}
        known = {
            key: value for key, value in expected.readings.items() if key not in ("power_watts", "battery_percent")
        }
        assert found == {**{key: nothing[key] for key in found}, **known}
    device.close()


@pytest.mark.parametrize("name", LINES)
def test_tegrastats_says_the_same_as_the_files(name: str) -> None:
    expected = recording(name)
    found = parse_tegrastats(expected.tegrastats)
    assert found.memory_total_bytes == expected.readings["memory_total_bytes"]
    assert (
        found.memory_used_bytes == expected.readings["memory_total_bytes"] - expected.readings["memory_available_bytes"]
    )
    assert found.gpu_percent == expected.readings.get("accelerator_percent")
    assert found.temperatures_celsius == expected.readings["temperatures_celsius"]
    assert board_watts(found.rails_watts) == pytest.approx(expected.readings["power_watts"])


def test_unified_memory_is_counted_once(tmp_path: Path) -> None:
    for name in NAMES:
        device = recording(name).device(tmp_path / name)
        if device.facts.accelerator is not None and device.facts.accelerator.unified:
            found = device.read()
            assert found.memory_total_bytes is not None and device.facts.accelerator.total_bytes is None
            assert found.accelerator_total_bytes is None and found.accelerator_available_bytes is None
