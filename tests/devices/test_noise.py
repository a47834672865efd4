# SPDX-License-Identifier: Apache-2.0
"""Whatever the system's files and programs say, a device gives readings within their bounds, and never an exception."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from devices.detection import detect
from devices.sensors.nvidia_smi import parse_gpus
from devices.sensors.tegrastats import parse_tegrastats
from fedcore.device.readings import Readings
from tests.devices.recordings import NAMES, recording

ABSURD = [
    b"",
    b"\0",
    b"\xff\xfe\x00",
    b"-1",
    b"0",
    b"1",
    b"9" * 26,
    b"1e400",
    b"nan",
    b"4294967295\n",
    b"\n" * 50,
    b"-256000\n",
]

quick = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
)


@st.composite
def damages(draw: st.DrawFn, content: bytes) -> bytes:
    """A file cut short, with wrong bytes, or with something else in it."""
    kind = draw(st.sampled_from(["cut", "bytes", "absurd", "noise"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if kind == "bytes":
        damaged = bytearray(content)
        for _ in range(draw(st.integers(1, 8))):
            if damaged:
                damaged[draw(st.integers(0, len(damaged) - 1))] = draw(st.integers(0, 255))
        return bytes(damaged)
    return draw(st.sampled_from(ABSURD)) if kind == "absurd" else draw(st.binary(max_size=200))


def in_bounds(found: Readings) -> None:
    assert msgspec.convert(msgspec.to_builtins(found), Readings) == found
    total, available = found.memory_total_bytes, found.memory_available_bytes
    assert total is None or available is None or available <= total


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_give_none_and_no_exception(name: str, tmp_path: Path) -> None:
    whole = recording(name)
    root = whole.put(tmp_path)
    paths = sorted(path for path in whole.files if not path.endswith("/"))

    @quick
    @given(data=st.data())
    def any_damage(data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=5, unique=True))
        damaged = {path: data.draw(damages(whole.files[path].encode())) for path in chosen}
        spoken = {
            command: data.draw(damages(text.encode())).decode("utf-8", "replace")
            for command, text in whole.programs.items()
        }
        late = detect(root, whole.run)
        late.read()
        try:
            for path, content in damaged.items():
                (root / path).write_bytes(content)
            early = detect(root, lambda command, timeout_seconds: spoken.get(" ".join(command)))
            for device in (early, late):
                in_bounds(device.read())
                in_bounds(device.read())
                facts = dataclasses.asdict(device.facts) | {
                    "gpu": device.facts.accelerator and device.facts.accelerator.name
                }
                assert facts["name"] and all(text.isprintable() for text in facts.values() if isinstance(text, str))
                device.close()
        finally:
            for path in damaged:
                (root / path).write_bytes(whole.files[path].encode())

    any_damage()


def test_every_single_file_may_be_missing_or_a_folder(tmp_path: Path) -> None:
    for name in NAMES:
        whole = recording(name)
        root = whole.put(tmp_path / name)
        for path in whole.files:
            if path.endswith("/"):
                continue
            (root / path).unlink()
            in_bounds(detect(root, whole.run).read())
            (root / path).mkdir()
            in_bounds(detect(root, whole.run).read())
            (root / path).rmdir()
            (root / path).write_bytes(whole.files[path].encode())


@quick
@given(name=st.sampled_from([name for name in NAMES if recording(name).tegrastats]), data=st.data())
def test_damaged_lines_give_what_is_left(name: str, data: st.DataObject) -> None:
    line = data.draw(damages(recording(name).tegrastats.encode())).decode("ascii", "replace")
    found = parse_tegrastats(line)
    assert found.gpu_percent is None or 0 <= found.gpu_percent <= 100
    assert all(-60 <= value <= 200 for value in found.temperatures_celsius.values())
    assert all(watts >= 0 for watts in found.rails_watts.values())


@quick
@given(text=st.text(max_size=200))
def test_any_text_is_no_error(text: str) -> None:
    parse_tegrastats(text)
    parse_gpus(text)
