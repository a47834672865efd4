# SPDX-License-Identifier: Apache-2.0
"""Temperatures: thermal zones, and those sensors of hwmon that measure something real.

Left out are zones that are no sensors (a policy's, an estimate) and the PMIC of older Jetsons, which says 100 degrees
always; and hwmon chips of desktop boards, whose open inputs say 127."""

from __future__ import annotations

import re
from pathlib import Path

from devices.checking import plausible_temperatures
from devices.files import folder_names, read_number, read_text

__all__ = ["Temperatures", "sensor_name"]

_NO_SENSORS = re.compile(r"pmic.*|int3400.*|thermal-fan-est|thermal", re.IGNORECASE)
# Chip of hwmon -> which of its sensors; "" is the first.
_CHIPS = {
    "acer": re.compile(r".*"),
    "amdgpu": re.compile(r"edge|junction|mem"),
    "applesmc": re.compile(r"TC0P|"),
    "coretemp": re.compile(r"Package id \d+|Physical id \d+"),
    "cpu_thermal": re.compile(r""),
    "dell_smm": re.compile(r"CPU|GPU|"),
    "drivetemp": re.compile(r""),
    "k10temp": re.compile(r"Tctl|Tdie|"),
    "k8temp": re.compile(r".*"),
    "nouveau": re.compile(r""),
    "nvme": re.compile(r"Composite|"),
    "rp1_adc": re.compile(r""),
    "thinkpad": re.compile(r"CPU|GPU"),
    "tmp451": re.compile(r".*"),
    "zenpower": re.compile(r"Tdie|Tctl"),
}


def sensor_name(text: str) -> str:
    """A sensor's name without the endings that say that it is one.

    Example:
        >>> [sensor_name(text) for text in ("CPU-therm", "tj-thermal", "Tboard_tegra", "x86_pkg_temp")]
        ['cpu', 'tj', 'tboard', 'x86_pkg_temp']
    """
    name = re.sub(r"[-_](?:thermal|therm|tegra)$", "", text.strip().lower())
    return re.sub(r"[^\w .:+-]", "?", name)[:36].strip() or "unnamed"


class Temperatures:
    """All temperatures of a machine."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sensors: list[tuple[str, str, bool]] = []

    def scan(self) -> None:
        """Look for sensors again: drivers come and go."""
        zones = self._zones()
        taken = {name for name, _, _ in zones}
        # The same sensor often comes as a zone and as a chip of hwmon.
        chips = [sensor for sensor in self._chips() if sensor[0] not in taken]
        self._sensors, seen = [], dict[str, int]()
        for name, path, silent_at_zero in [*zones, *chips]:
            seen[name] = seen.get(name, 0) + 1
            self._sensors.append((name if seen[name] == 1 else f"{name} {seen[name]}", path, silent_at_zero))

    def celsius(self) -> dict[str, float]:
        """By sensor; one that is switched off or talks nonsense is left out."""
        found = {}
        for name, path, silent_at_zero in self._sensors:
            value = read_number(path)
            if value is not None and not (value == 0 and silent_at_zero):
                found[name] = value / 1000
        return plausible_temperatures(found)

    def _zones(self) -> list[tuple[str, str, bool]]:
        folder = self._root / "sys/class/thermal"
        found = []
        for entry in folder_names(folder, "thermal_zone") or ():
            kind = read_text(folder / entry / "type", 256)
            if kind is not None and not _NO_SENSORS.fullmatch(kind):
                found.append((sensor_name(kind), str(folder / entry / "temp"), False))
        return found

    def _chips(self) -> list[tuple[str, str, bool]]:
        folder = self._root / "sys/class/hwmon"
        found = []
        for entry in folder_names(folder, "hwmon") or ():
            chip = read_text(folder / entry / "name", 256) or ""
            wanted = _CHIPS.get(chip)
            if wanted is None:
                continue
            for file in folder_names(folder / entry, "temp") or ():
                if file.endswith("_input"):
                    label = read_text(folder / entry / f"{file.removesuffix('_input')}_label", 256) or ""
                    if wanted.fullmatch(label):
                        # A ThinkPad names sensors that it does not have; they say 0.
                        found.append(
                            (sensor_name(f"{chip} {label}".strip()), str(folder / entry / file), chip == "thinkpad")
                        )
        return found
