# SPDX-License-Identifier: Apache-2.0
"""A laptop: a machine with a battery, or one whose firmware says that it is portable; with or without an NVIDIA GPU."""

from __future__ import annotations

from dataclasses import replace

from devices.base import Device, Host
from devices.files import read_integer
from devices.identity import device_tree_model, dmi_name
from devices.kinds.linux import LinuxDevice, facts_of
from devices.sensors.memory import memory_bytes
from devices.sensors.nvidia_smi import NvidiaGpu
from devices.sensors.power_mode import platform_profile
from devices.sensors.supply import has_battery

__all__ = ["Laptop", "detect"]

# Portable, laptop, notebook, sub notebook, tablet, convertible, detachable (SMBIOS specification, table "System
# enclosure types").
_PORTABLE = frozenset({8, 9, 10, 14, 30, 31, 32})
_SIZES_GB = (8, 16)


class Laptop(LinuxDevice):
    """A laptop. Its power is known only while it runs on battery: mains power is measured by nothing that can be
    read."""

    def values(self) -> dict[str, object]:
        """With the platform profile as power mode."""
        return {**super().values(), "power_mode": platform_profile(self._host.root)}


def detect(host: Host) -> Device | None:
    """The laptop, if it is one."""
    portable = read_integer(host.root / "sys/class/dmi/id/chassis_type") in _PORTABLE
    if not portable and not has_battery(host.root):
        return None
    gpu = NvidiaGpu.found(host.root, host.run, host.clock)
    facts = facts_of("laptop", dmi_name(host.root) or device_tree_model(host.root) or "laptop", host, gpu)
    total = memory_bytes(host.root)[0]
    # Only what looks like one of the catalogue's sizes, less what firmware and graphics keep.
    size = next((size for size in _SIZES_GB if total is not None and 0.85 * size * 2**30 < total <= size * 2**30), None)
    return Laptop(replace(facts, catalogue=f"laptop-{size}gb" if size is not None else None), host, gpu)
