# SPDX-License-Identifier: Apache-2.0
"""The device: what it is, what its sensors say, whether it runs slower than it could, its clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from edge_client.doctor.base import Check, Surroundings
from edge_client.node import Node
from fedcore.device.readings import Readings

__all__ = ["clock", "device", "sensors"]

# Before this software was written: a board without a battery for its clock.
_FIRST_YEAR = 2025
# Sensors that are programs (tegrastats, nvidia-smi) answer after their first second.
_READS, _PAUSE_SECONDS = 3, 0.7


def device(around: Surroundings, node: Node | None) -> Sequence[Check]:
    """What it is and what it tells."""
    facts = around.device.facts
    about = [facts.name, facts.system, facts.processor, facts.machine]
    checks = [Check("device", "kind", "ok", f"{facts.kind}: {'; '.join(filter(None, about))}")]
    if (gpu := facts.accelerator) is not None:
        capability = (
            ""
            if gpu.compute_capability is None
            else f", compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}"
        )
        own = (
            f", {gpu.total_bytes / 2**30:.1f} GiB of its own"
            if gpu.total_bytes
            else ", shares the system's memory"
            if gpu.unified
            else ""
        )
        checks.append(Check("device", "accelerator", "ok", f"{gpu.name}{capability}{own}"))
    readings = around.device.read()
    for _ in range(0 if around.quick else _READS - 1):
        time.sleep(_PAUSE_SECONDS)
        readings = around.device.read()
    return [*checks, *sensors(readings, node)]


def sensors(readings: Readings, node: Node | None) -> Iterator[Check]:
    """One reading of all sensors, and whether the node's policy has what it needs."""
    found = [f"{name} {value:.0f} °C" for name, value in readings.temperatures_celsius.items()]
    found += [] if readings.power_watts is None else [f"{readings.power_watts:.1f} W"]
    found += [] if readings.battery_percent is None else [f"battery {readings.battery_percent:.0f} %"]
    found += [] if readings.on_mains is None else ["on mains" if readings.on_mains else "on battery"]
    yield Check("device", "sensors", "ok", ", ".join(found) or "none that can be read")
    if readings.power_mode:
        yield Check("device", "power mode", "ok", readings.power_mode)
    if readings.throttled is not None:
        why = (
            f"slower than it could be: {readings.throttle_reason or 'no reason told'}" if readings.throttled else "none"
        )
        remedy = "better cooling, a stronger power supply, or a higher power mode" if readings.throttled else ""
        yield Check("device", "throttling", "warning" if readings.throttled else "ok", why, remedy)
    if node is None:
        return
    needs = {
        "max_temperature_celsius": (node.policy.max_temperature_celsius is not None, readings.hottest_celsius),
        "mains_only": (node.policy.mains_only, readings.on_mains),
    }
    for key, (asked, value) in needs.items():
        if asked and value is None:
            yield Check(
                "device",
                f"policy.{key}",
                "error",
                "nothing here tells what it needs: the node would rest for ever",
                f"leave out policy.{key}",
            )


def clock(around: Surroundings, node: Node | None) -> Sequence[Check]:
    """The date, which certificates are checked against, and whether something keeps it right."""
    del node
    now = time.gmtime(around.clock())
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", now)
    if now.tm_year < _FIRST_YEAR:
        return [
            Check(
                "clock",
                "date",
                "error",
                f"{text}: certificates would not be valid yet",
                "sudo timedatectl set-ntp true, or set the date",
            )
        ]
    checks = [Check("clock", "date", "ok", text)]
    said = around.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"], 5.0)
    if said is None or said.strip() not in ("yes", "no"):
        return [*checks, Check("clock", "synchronised", "ok", "not told here")]
    right = said.strip() == "yes"
    remedy = "" if right else "sudo timedatectl set-ntp true; deadlines and certificates depend on the clock"
    return [*checks, Check("clock", "synchronised", "ok" if right else "warning", said.strip(), remedy)]
