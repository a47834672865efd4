# SPDX-License-Identifier: Apache-2.0
"""What kind of machine this is, from the system's own files, without root."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["device_name", "jetson_model"]


def jetson_model(root: Path = Path("/")) -> str | None:
    """The board's name where the device tree says that it is a Jetson (NVIDIA's `tegra` chips), else None."""
    compatible = _text(root / "proc/device-tree/compatible")
    if compatible is None or "nvidia,tegra" not in compatible:
        return None
    return _text(root / "proc/device-tree/model")


def device_name(root: Path = Path("/")) -> str:
    """The most telling name: device tree (Jetson, Raspberry Pi), then the vendor's product name, then system and processor."""
    for path in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        if name := _text(root / path):
            return name
    return f"{platform.system()} {platform.machine()}"


def _text(path: Path) -> str | None:
    try:
        # Device-tree strings end with, and lists are separated by, a zero byte.
        text = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return None
    return text or None
