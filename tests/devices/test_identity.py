# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import platform
from pathlib import Path

from devices.identity import device_name, jetson_model


def tree(root: Path, model: bytes, compatible: bytes) -> Path:
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/model").write_bytes(model)
    (root / "proc/device-tree/compatible").write_bytes(compatible)
    return root


def test_jetson_and_raspberry_pi_are_told_apart(tmp_path: Path) -> None:
    orin = tree(tmp_path / "o", b"NVIDIA Jetson Orin Nano Developer Kit\0", b"nvidia,p3768-0000\0nvidia,tegra234\0")
    pi = tree(tmp_path / "p", b"Raspberry Pi 5 Model B Rev 1.0\0", b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert jetson_model(orin) == device_name(orin) == "NVIDIA Jetson Orin Nano Developer Kit"
    assert jetson_model(pi) is None and device_name(pi) == "Raspberry Pi 5 Model B Rev 1.0"


def test_a_machine_without_these_files_is_system_and_processor(tmp_path: Path) -> None:
    assert jetson_model(tmp_path) is None and device_name(tmp_path) == f"{platform.system()} {platform.machine()}"
