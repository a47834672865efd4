# SPDX-License-Identifier: Apache-2.0
"""Power of a Jetson's supply rails, from its current monitors (INA3221; on Thor's carrier board an INA238 too).

Which rails make up the board differs: one input rail where there is one; on AGX boards the sum of the module's inputs.
All other rails lie behind these and are never added (`VDDQ_VDD2_1V8AO` behind `VIN_SYS_5V0`, `POM_5V_GPU` behind
`POM_5V_IN`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devices.files import folder_names, read_number, read_text

__all__ = ["Rails", "board_watts"]

# Thor's carrier board; Orin Nano, Orin NX, Xavier NX, TX2, TX1; Nano.
_INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")
# AGX Orin; Thor without its carrier's monitor; AGX Xavier.
_INPUT_GROUPS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
_HWMON_CHIPS = ("ina3221", "ina238")


def board_watts(rails: Mapping[str, float]) -> float | None:
    """What the board, or on AGX boards the module, draws; None where the rails do not tell.

    Example:
        >>> board_watts({"VDD_IN": 5.263, "VDD_SOC": 1.794})
        5.263
        >>> board_watts({"VDD_SOC": 1.794}) is None
        True
    """
    for name in _INPUTS:
        if name in rails:
            return rails[name]
    for group in _INPUT_GROUPS:
        if all(name in rails for name in group):
            return sum(rails[name] for name in group)
    return None


@dataclass(frozen=True)
class _Rail:
    name: str
    power_path: str = ""
    per_watt: float = 1.0
    voltage_path: str = ""
    current_path: str = ""

    def watts(self) -> float | None:
        if self.power_path:
            power = read_number(self.power_path)
            return None if power is None or power < 0 else power / self.per_watt
        millivolts, milliamperes = read_number(self.voltage_path), read_number(self.current_path)
        if millivolts is None or milliamperes is None or millivolts < 0:
            return None
        return max(0.0, milliamperes) * millivolts / 1e6  # a channel without load may read a few mA below zero


class Rails:
    """The rails of one board; every file of them can be read by anybody."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._rails: list[_Rail] = []

    def scan(self) -> None:
        """Look for monitors again."""
        self._rails = [*self._hwmon(), *self._iio()]

    def watts(self) -> dict[str, float]:
        """Power of each rail that can be read, in watts, by the rail's name."""
        return {rail.name: watts for rail in self._rails if (watts := rail.watts()) is not None}

    def _hwmon(self) -> list[_Rail]:
        folder = self._root / "sys/class/hwmon"
        found = []
        for entry in folder_names(folder, "hwmon") or ():
            chip, path = read_text(folder / entry / "name", 256), folder / entry
            if chip not in _HWMON_CHIPS:
                continue
            if chip == "ina238":
                found.append(_Rail(read_text(path / "label", 256) or "VIN", str(path / "power1_input"), 1e6))
                continue
            for channel in (1, 2, 3):  # 4 to 7 are shunt voltages and their sum
                name = read_text(path / f"in{channel}_label", 256)
                if name is not None and name != "NC":
                    found.append(
                        _Rail(
                            name,
                            voltage_path=str(path / f"in{channel}_input"),
                            current_path=str(path / f"curr{channel}_input"),
                        )
                    )
        return found

    def _iio(self) -> list[_Rail]:
        """Before JetPack 5."""
        driver = self._root / "sys/bus/i2c/drivers/ina3221x"
        found = []
        for address in folder_names(driver) or ():
            for entry in folder_names(driver / address, "iio") or ():
                for channel in (0, 1, 2):
                    path = driver / address / entry
                    name = read_text(path / f"rail_name_{channel}", 256)
                    if name is not None and name != "NC":
                        found.append(_Rail(name, str(path / f"in_power{channel}_input"), 1e3))
        return found
