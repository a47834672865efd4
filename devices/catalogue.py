# SPDX-License-Identifier: Apache-2.0
"""Devices by name, for planning on another machine: what memory the system sees, which is less than what the box says.

MiB as real boards print them where a figure is known (the lowest, where releases differ: JetPack 5 leaves a Xavier NX
900 MiB less than JetPack 4); for the others the nominal size less the share that the firmware keeps on most of their
sisters (7 %)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from fedcore.errors import ConfigError

__all__ = ["DEVICES", "Device", "device_by_name"]

_MIB = 2**20
# What system and desktop need, the larger of the two: a board that trains still has to answer.
_RESERVE_BYTES, _RESERVE_SHARE = 10**9, 0.15


@dataclass(frozen=True)
class Device:
    """A kind of device."""

    name: str
    total_bytes: int
    measured: bool
    """Whether the figure comes from a real board."""

    @property
    def usable_bytes(self) -> int:
        """What a client may plan with when nothing else runs."""
        return self.total_bytes - int(max(_RESERVE_BYTES, _RESERVE_SHARE * self.total_bytes))


DEVICES = {
    device.name: device
    for device in (
        Device("jetson-orin-nano-4gb", 3810 * _MIB, False),
        Device("jetson-orin-nano-8gb", 7620 * _MIB, True),
        Device("jetson-orin-nx-8gb", 7620 * _MIB, False),
        Device("jetson-orin-nx-16gb", 15240 * _MIB, False),
        Device("jetson-agx-orin-32gb", 30536 * _MIB, True),
        Device("jetson-agx-orin-64gb", 62817 * _MIB, True),
        Device("jetson-thor-64gb", 61000 * _MIB, False),
        Device("jetson-thor-128gb", 125772 * _MIB, True),
        Device("jetson-xavier-nx-8gb", 6851 * _MIB, True),
        Device("jetson-xavier-nx-16gb", 15240 * _MIB, False),
        Device("jetson-agx-xavier-16gb", 15692 * _MIB, True),
        Device("jetson-agx-xavier-32gb", 30470 * _MIB, False),
        Device("jetson-agx-xavier-64gb", 60950 * _MIB, False),
        Device("raspberry-pi-4-4gb", 3662 * _MIB, True),
        Device("raspberry-pi-4-8gb", 7620 * _MIB, False),
        Device("raspberry-pi-5-4gb", 3810 * _MIB, False),
        Device("raspberry-pi-5-8gb", 8062 * _MIB, True),
        Device("raspberry-pi-5-16gb", 15240 * _MIB, False),
        Device("laptop-8gb", 7700 * _MIB, False),
        Device("laptop-16gb", 15700 * _MIB, False),
    )
}


def device_by_name(name: str, *, place: str) -> Device:
    """A device of the catalogue.

    Raises:
        ConfigError: No such device; the remedy is the nearest name.
    """
    found = DEVICES.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), DEVICES, 1, 0.4)
        remedy = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"no device {name!r}", place=place, remedy=f"{remedy}devices: {', '.join(DEVICES)}")
    return found
