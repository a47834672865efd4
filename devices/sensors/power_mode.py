# SPDX-License-Identifier: Apache-2.0
"""The name of the power budget that a device is set to: nvpmodel's on a Jetson, the platform profile on a laptop."""

from __future__ import annotations

import re
from pathlib import Path

from devices.files import read_text

__all__ = ["NvpModel", "platform_profile"]

_MODE = re.compile(r"\bpmode:(\d{1,4})\b")
_NAMES = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([^\s>]{1,60})\s*>", re.MULTILINE)


class NvpModel:
    """A Jetson's power mode. `nvpmodel -q` needs root on some releases; the files that it keeps do not."""

    def __init__(self, root: Path) -> None:
        self._status, self._conf = str(root / "var/lib/nvpmodel/status"), str(root / "etc/nvpmodel.conf")
        self._names: dict[int, str] = {}

    def scan(self) -> None:
        """Read the modes' names again."""
        self._names = {int(number): name for number, name in _NAMES.findall(read_text(self._conf) or "")}

    def name(self) -> str:
        """`15W`, `MAXN_SUPER`; `mode 3` if it has no name; empty if the device does not tell."""
        found = _MODE.search(read_text(self._status, 256) or "")
        if found is None:
            return ""
        number = int(found.group(1))
        return self._names.get(number, f"mode {number}")


def platform_profile(root: Path) -> str:
    """`balanced`, `performance`, `low-power`; empty where the firmware has none."""
    return (read_text(root / "sys/firmware/acpi/platform_profile", 64) or "")[:60]
