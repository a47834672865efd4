# SPDX-License-Identifier: Apache-2.0
"""Any Linux machine; the other kinds add to it what they know better."""

from __future__ import annotations

import platform

from devices.base import Device, Facts, Host
from devices.checking import checked
from devices.identity import device_tree_model, dmi_name, machine, operating_system, processor
from devices.sensors.load import ProcessorLoad
from devices.sensors.memory import memory_bytes
from devices.sensors.nvidia_smi import NvidiaGpu
from devices.sensors.supply import PowerSupply
from devices.sensors.temperature import Temperatures
from devices.sensors.throttling import CoolingDevices, Growth, TripPoints, Verdict, together, x86_throttle_counters
from fedcore.device.readings import Readings

__all__ = ["LinuxDevice", "detect", "facts_of"]

_SCAN_SECONDS = 60.0


class LinuxDevice:
    """What every Linux machine tells through the same files.

    Args:
        facts: What it is.
        host: Its files and programs.
        gpu: An NVIDIA GPU with memory of its own, if there is one.
    """

    def __init__(self, facts: Facts, host: Host, gpu: NvidiaGpu | None = None) -> None:
        self._facts, self._host, self._gpu = facts, host, gpu
        self._temperatures, self._load = Temperatures(host.root), ProcessorLoad(host.root)
        self._supply = PowerSupply(host.root, host.clock)
        self._cooling, self._trips = CoolingDevices(host.root), TripPoints(host.root)
        self._growth = Growth(self.counters())
        self._scan_at: float | None = None

    @property
    def facts(self) -> Facts:
        """What the machine is, found once."""
        return self._facts

    def read(self) -> Readings:
        """All sensors now."""
        now = self._host.clock()
        if self._scan_at is None or now >= self._scan_at:
            self._scan_at = now + _SCAN_SECONDS
            self.scan()
        values = self.values()
        verdict = together(self.verdicts())
        values["throttled"], values["throttle_reason"] = verdict.throttled, verdict.reason
        return checked(values)

    def close(self) -> None:
        """Nothing of it runs."""

    # What a kind may do otherwise

    def scan(self) -> None:
        """Look for sensors: drivers come and go."""
        self._temperatures.scan()
        self._cooling.scan()
        self._trips.scan()

    def values(self) -> dict[str, object]:
        """Readings by name; None for what is not known, anything for what will be checked."""
        total, available = memory_bytes(self._host.root)
        supply, gpu = self._supply.read(), self._gpu.read() if self._gpu is not None else None
        temperatures = self._temperatures.celsius()
        if gpu is not None and gpu.celsius is not None:
            temperatures.setdefault("gpu", gpu.celsius)
        return {
            "memory_total_bytes": total,
            "memory_available_bytes": available,
            "accelerator_total_bytes": self._gpu.accelerator.total_bytes if self._gpu is not None else None,
            "accelerator_available_bytes": gpu.free_bytes if gpu is not None else None,
            "accelerator_percent": gpu.percent if gpu is not None else None,
            "temperatures_celsius": temperatures,
            "power_watts": supply.battery_watts,
            "on_mains": supply.on_mains,
            "battery_percent": supply.battery_percent,
            "processor_percent": self._load.percent(),
        }

    def verdicts(self) -> list[Verdict]:
        """What every source says that may know of throttling."""
        cooling, grown = self._cooling.verdict(), self._growth.verdict()
        gpu = self._gpu.read() if self._gpu is not None else None
        slowed = (
            Verdict() if gpu is None or gpu.slow_reason is None else Verdict(bool(gpu.slow_reason), gpu.slow_reason)
        )
        # What cools a device tells more surely than what should start to cool it.
        trips = self._trips.verdict() if cooling.throttled is None else Verdict()
        return [cooling, trips, grown, slowed]

    def counters(self) -> list[tuple[str, str]]:
        """Reason and file of event counters."""
        return x86_throttle_counters(self._host.root)


def facts_of(kind: str, name: str, host: Host, gpu: NvidiaGpu | None = None) -> Facts:
    """Facts that come from the same files everywhere."""
    return Facts(
        kind,
        name,
        system=operating_system(host.root),
        processor=processor(host.root),
        machine=host.machine or machine(host.root),
        memory_total_bytes=memory_bytes(host.root)[0],
        accelerator=gpu.accelerator if gpu is not None else None,
    )


def detect(host: Host) -> Device:
    """A machine of no special kind."""
    gpu = NvidiaGpu.found(host.root, host.run, host.clock)
    known = device_tree_model(host.root) or dmi_name(host.root)
    system = "Linux" if host.machine is None else platform.system()
    name = known or f"{system} {host.machine or machine(host.root) or ''}".strip()
    return LinuxDevice(facts_of("linux", name, host, gpu), host, gpu)
