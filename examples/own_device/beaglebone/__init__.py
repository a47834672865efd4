# SPDX-License-Identifier: Apache-2.0
"""A device of one's own: a BeagleBone with a thermometer on its 1-Wire pins.

`fedkrso doctor` and `python -m devices` then name the board, and its case's temperature is told with its readings. What
cannot be read is None, and nothing raises."""

from __future__ import annotations

from devices.base import Device, Host
from devices.files import folder_names, read_integer
from devices.identity import device_tree_model
from devices.kinds.linux import LinuxDevice, facts_of
from fedkrso import register_device

__all__ = ["BeagleBone", "detect"]


class BeagleBone(LinuxDevice):
    """Everything that a Linux machine tells, and the case's temperature."""

    def values(self) -> dict[str, object]:
        """With the first thermometer of the 1-Wire bus, which counts thousandths of a degree."""
        values = super().values()
        bus = self._host.root / "sys/bus/w1/devices"
        thousandths = next((read_integer(bus / name / "temperature") for name in folder_names(bus, "28-") or ()), None)
        if thousandths is not None and isinstance(values["temperatures_celsius"], dict):
            values["temperatures_celsius"]["case"] = thousandths / 1000
        return values


@register_device("beaglebone")
def detect(host: Host) -> Device | None:
    """The board, if it is one: asked before the kinds that fedkrso knows."""
    model = device_tree_model(host.root)
    if model is None or "BeagleBone" not in model:
        return None
    return BeagleBone(facts_of("beaglebone", model, host), host)
