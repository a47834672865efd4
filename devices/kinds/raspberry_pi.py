# SPDX-License-Identifier: Apache-2.0
"""A Raspberry Pi, without `vcgencmd`: that program needs a device file that only some groups may open."""

from __future__ import annotations

import re
from dataclasses import replace

from devices.base import Device, Host
from devices.files import folder_names, read_integer, read_text
from devices.identity import compatible, device_tree_model
from devices.kinds.linux import LinuxDevice, facts_of
from devices.sensors.memory import memory_bytes
from devices.sensors.throttling import Verdict

__all__ = ["RaspberryPi", "detect", "firmware_verdict"]

# The lower half of the firmware's word is now, the upper half since start (raspberrypi/linux #2367).
_NOW = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "heat (soft limit)"}
_SIZES_GB = {"4": (1, 2, 4, 8), "5": (2, 4, 8, 16)}


def firmware_verdict(text: str | None) -> Verdict:
    """What the firmware's word of throttling says of this moment: hexadecimal, without `0x` in the kernel's file.

    Example:
        >>> firmware_verdict("50005")
        Verdict(throttled=True, reason='under-voltage')
        >>> firmware_verdict("80000")
        Verdict(throttled=False, reason='')
    """
    found = re.fullmatch(r"(?:0x)?([0-9a-fA-F]{1,8})", text or "")
    if found is None:
        return Verdict()
    word = int(found.group(1), 16)
    now = [reason for bit, reason in _NOW.items() if word >> bit & 1]
    # "Throttled" follows from one of the others, which says more.
    reasons = [reason for reason in now if reason != "throttled"] or now
    return Verdict(bool(now), ", ".join(reasons))


class RaspberryPi(LinuxDevice):
    """A Raspberry Pi. Nothing on it measures its power."""

    _firmware: str | None = None
    _alarm: str | None = None

    def scan(self) -> None:
        """With the firmware's files, whose folders differ between boards."""
        super().scan()
        platform, hwmon = self._host.root / "sys/devices/platform", self._host.root / "sys/class/hwmon"
        words = (
            platform / soc / firmware / "get_throttled"
            for soc in folder_names(platform, "soc") or ()
            for firmware in folder_names(platform / soc, "soc") or ()
            if firmware.endswith(":firmware")
        )
        self._firmware = next((str(path) for path in words if path.exists()), None)
        chips = (
            name for name in folder_names(hwmon, "hwmon") or () if read_text(hwmon / name / "name", 64) == "rpi_volt"
        )
        self._alarm = next((str(hwmon / name / "in0_lcrit_alarm") for name in chips), None)

    def verdicts(self) -> list[Verdict]:
        """With the firmware's word; where the kernel does not show it, its alarm of under-voltage in the last
        seconds."""
        firmware = firmware_verdict(read_text(self._firmware, 64)) if self._firmware is not None else Verdict()
        if firmware.throttled is None and self._alarm is not None:
            alarm = read_integer(self._alarm)
            firmware = Verdict() if alarm not in (0, 1) else Verdict(alarm == 1, "under-voltage" if alarm else "")
        return [*super().verdicts(), firmware]


def detect(host: Host) -> Device | None:
    """The Raspberry Pi, if it is one."""
    model = device_tree_model(host.root)
    if not any(name.startswith("raspberrypi,") for name in compatible(host.root)) and not (model or "").startswith(
        "Raspberry Pi"
    ):
        return None
    facts = facts_of("raspberry-pi", model or "Raspberry Pi", host)
    generation = re.match(r"Raspberry Pi (?:Compute Module )?(\d)(?:00)?\b", model or "")
    total = memory_bytes(host.root)[0]
    sizes = _SIZES_GB.get(generation.group(1), ()) if generation else ()
    size = next((size for size in sizes if total is not None and total <= size * 2**30), None)
    name = f"raspberry-pi-{generation.group(1)}-{size}gb" if generation and size is not None and size >= 4 else None
    return RaspberryPi(replace(facts, catalogue=name), host)
