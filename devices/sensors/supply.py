# SPDX-License-Identifier: Apache-2.0
"""Mains and battery from /sys/class/power_supply.

The kernel asks a laptop's embedded controller for these, which takes milliseconds: `PowerSupply` does so every five
seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from devices.files import folder_names, read_text

__all__ = ["PowerSupply", "Supply", "has_battery"]

_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class Supply:
    """Where the power comes from."""

    on_mains: bool | None = None
    battery_percent: float | None = None
    battery_watts: float | None = None
    """What the batteries give: the whole machine's draw while it runs on them, else None."""


class PowerSupply:
    """The power supply of one machine."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = root / "sys/class/power_supply", clock
        self._held = Supply()
        self._until: float | None = None

    def read(self) -> Supply:
        """At most five seconds old."""
        now = self._clock()
        if self._until is None or now >= self._until:
            self._held, self._until = _read(self._folder), now + _EVERY_SECONDS
        return self._held


def has_battery(root: Path) -> bool:
    """Whether the machine has a battery of its own; a desktop's UPS is none."""
    folder = root / "sys/class/power_supply"
    found = (_properties(folder / name) for name in folder_names(folder) or ())
    return any(each.get("TYPE") == "Battery" and _is_battery(each) for each in found)


def _read(folder: Path) -> Supply:
    names = folder_names(folder)
    if names is None:
        return Supply()
    found = [_properties(folder / name) for name in names]
    batteries = [each for each in found if _is_battery(each)]
    # Type-C ports are of type USB here whatever they carry.
    plugs = [
        each
        for each in found
        if (each.get("TYPE") == "Mains" or each.get("TYPE", "").startswith("USB")) and "ONLINE" in each
    ]
    states = [each.get("STATUS", "") for each in batteries]
    on_mains: bool | None = None
    if not batteries:
        on_mains = True  # the kernel lists what the machine can run on, and no battery is among it
    elif any(each["ONLINE"] not in ("", "0") for each in plugs) or "Charging" in states:
        on_mains = True
    elif plugs or "Discharging" in states:
        on_mains = False
    elif all(state == "Full" for state in states):
        on_mains = True
    return Supply(on_mains, _percent(batteries), _watts(batteries) if on_mains is False else None)


def _properties(folder: Path) -> dict[str, str]:
    """All properties with one read; a kernel that leaves some out of `uevent` has them as files."""
    found = {}
    for line in (read_text(folder / "uevent", 4096) or "").splitlines():
        name, _, value = line.partition("=")
        found[name.removeprefix("POWER_SUPPLY_")] = value.strip()
    for name in ("TYPE", "SCOPE", "PRESENT", "ONLINE", "STATUS", "CAPACITY"):
        if name not in found and (text := read_text(folder / name.lower(), 64)) is not None:
            found[name] = text
    return found


def _is_battery(properties: dict[str, str]) -> bool:
    """A mouse's battery is of scope `Device`; a bay without one says that none is present."""
    return (
        properties.get("TYPE") in ("Battery", "UPS")
        and properties.get("SCOPE") != "Device"
        and properties.get("PRESENT") != "0"
    )


def _percent(batteries: list[dict[str, str]]) -> float | None:
    """Charge of all batteries, by their size where every one tells it."""
    charges = [_number(each.get("CAPACITY")) for each in batteries]
    known = [charge for charge in charges if charge is not None and 0 <= charge <= 100]
    if not known or len(known) < len(batteries):
        return None
    sizes = [_number(each.get("ENERGY_FULL", each.get("CHARGE_FULL"))) for each in batteries]
    weights = [size for size in sizes if size is not None and size > 0]
    if len(weights) < len(known):
        weights = [1.0] * len(known)
    return sum(charge * weight for charge, weight in zip(known, weights, strict=True)) / sum(weights)


def _watts(batteries: list[dict[str, str]]) -> float | None:
    """Microwatts, or microvolts times microamperes, of those that discharge."""
    found = []
    for each in batteries:
        if each.get("STATUS") != "Discharging":
            continue
        power = _number(each.get("POWER_NOW"))
        volts, amperes = _number(each.get("VOLTAGE_NOW")), _number(each.get("CURRENT_NOW"))
        if power is None and volts is not None and amperes is not None:
            power = volts * amperes / 1e6
        # Some count what flows out as negative.
        found.append(None if power is None else abs(power) / 1e6)
    known = [watts for watts in found if watts is not None]
    return sum(known) if known and len(known) == len(found) else None


def _number(text: str | None) -> float | None:
    if text is None or len(text) > 20 or not text.lstrip("+-").isdecimal() or not text.isascii():
        return None
    try:
        return float(text)
    except ValueError:
        return None
