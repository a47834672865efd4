# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import platform
from pathlib import Path

from devices.detection import detect


def tree(root: Path, model: bytes, compatible: bytes) -> Path:
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/model").write_bytes(model)
    (root / "proc/device-tree/compatible").write_bytes(compatible)
    return root


def test_jetson_and_raspberry_pi_are_told_apart(tmp_path: Path) -> None:
    orin = tree(tmp_path / "o", b"NVIDIA Jetson Orin Nano Developer Kit\0", b"nvidia,p3768-0000\0nvidia,tegra234\0")
    pi = tree(tmp_path / "p", b"Raspberry Pi 5 Model B Rev 1.0\0", b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    found, other = detect(orin).facts, detect(pi).facts
    assert (found.kind, found.name) == ("jetson", "NVIDIA Jetson Orin Nano Developer Kit")
    assert (other.kind, other.name) == ("raspberry-pi", "Raspberry Pi 5 Model B Rev 1.0")


def test_a_machine_without_these_files_is_linux(tmp_path: Path) -> None:
    facts = detect(tmp_path).facts
    assert (facts.kind, facts.name, facts.machine, facts.memory_total_bytes) == ("linux", "Linux", None, None)


def test_this_machine_has_a_name_and_a_processor_architecture() -> None:
    facts = detect().facts
    assert facts.name and facts.machine == platform.machine()
