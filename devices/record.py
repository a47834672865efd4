# SPDX-License-Identifier: Apache-2.0
"""A board's sensor files as one text file, for a bug report and for a test: everything that `devices` reads, and
nothing else.

No serial number, address or host name is among these files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from devices.files import read_bytes
from devices.programs import RunProgram

__all__ = ["FILES", "recorded"]

FILES = (
    "etc/nv_tegra_release",
    "etc/nvpmodel.conf",
    "etc/os-release",
    "proc/cpuinfo",
    "proc/device-tree/compatible",
    "proc/device-tree/model",
    "proc/meminfo",
    "proc/stat",
    "proc/sys/kernel/arch",
    "proc/sys/kernel/osrelease",
    "sys/bus/i2c/drivers/ina3221x/*/iio*/in_power[0-2]_input",
    "sys/bus/i2c/drivers/ina3221x/*/iio*/rail_name_[0-2]",
    "sys/bus/pci/devices/*/class",
    "sys/bus/pci/devices/*/power/runtime_status",
    "sys/bus/pci/devices/*/vendor",
    "sys/class/devfreq/*/device/load",
    "sys/class/dmi/id/chassis_type",
    "sys/class/dmi/id/product_name",
    "sys/class/dmi/id/product_version",
    "sys/class/dmi/id/sys_vendor",
    "sys/class/hwmon/hwmon*/curr[1-3]_input",
    "sys/class/hwmon/hwmon*/in0_lcrit_alarm",
    "sys/class/hwmon/hwmon*/in[1-3]_input",
    "sys/class/hwmon/hwmon*/in[1-3]_label",
    "sys/class/hwmon/hwmon*/label",
    "sys/class/hwmon/hwmon*/name",
    "sys/class/hwmon/hwmon*/oc[1-3]_event_cnt",
    "sys/class/hwmon/hwmon*/power1_input",
    "sys/class/hwmon/hwmon*/temp*_input",
    "sys/class/hwmon/hwmon*/temp*_label",
    "sys/class/power_supply/*/type",
    "sys/class/power_supply/*/uevent",
    "sys/class/thermal/cooling_device*/cur_state",
    "sys/class/thermal/cooling_device*/type",
    "sys/class/thermal/thermal_zone*/temp",
    "sys/class/thermal/thermal_zone*/trip_point_*_temp",
    "sys/class/thermal/thermal_zone*/trip_point_*_type",
    "sys/class/thermal/thermal_zone*/type",
    "sys/devices/*.*/load",
    "sys/devices/platform/*.*/load",
    "sys/devices/platform/bus@0/*.gpu/load",
    "sys/devices/platform/soc*/soc*:firmware/get_throttled",
    "sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count",
    "sys/firmware/acpi/platform_profile",
    "var/lib/nvpmodel/status",
    "System/Library/CoreServices/SystemVersion.plist",
)
_PROGRAMS: tuple[tuple[str, ...], ...] = (
    (
        "nvidia-smi",
        "--query-gpu=name,memory.total,memory.free,utilization.gpu,temperature.gpu,power.draw,clocks_throttle_reasons.active",
        "--format=csv,noheader,nounits",
    ),
    ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"),
    ("dpkg-query", "--show", "--showformat=${Version}", "nvidia-l4t-core"),
    ("sysctl", "hw.memsize", "hw.model", "hw.machine", "machdep.cpu.brand_string"),
    ("vm_stat",),
    ("pmset", "-g", "batt"),
    ("pmset", "-g", "therm"),
)
_MOST_BYTES = 16_384
_PRIVATE = ("POWER_SUPPLY_SERIAL_NUMBER", "Serial")


def recorded(root: Path, run: RunProgram, programs: Sequence[tuple[str, ...]] = _PROGRAMS) -> str:
    """The record, as TOML: a table of files and one of programs with what they printed.

    Args:
        root: Of the file system.
        run: Runs the programs.
        programs: Which.
    """
    lines = ["[files]"]
    for pattern in FILES:
        for path in sorted(root.glob(pattern)):
            content = read_bytes(path, _MOST_BYTES)
            if content is not None:
                text = _without_serials(content.decode("utf-8", "replace"))
                lines.append(f"{_quoted(str(path.relative_to(root)))} = {_quoted(text)}")
    lines += ["", "[programs]"]
    for command in programs:
        output = run(command, 5.0)
        if output is not None:
            lines.append(f"{_quoted(' '.join(command))} = {_quoted(output)}")
    return "\n".join(lines) + "\n"


def _without_serials(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(_PRIVATE))


def _quoted(text: str) -> str:
    """A basic string of TOML, which JSON's are too, but for the character DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
