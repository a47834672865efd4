# SPDX-License-Identifier: Apache-2.0
"""macOS, as far as its own programs tell without root: memory, mains, battery, and whether heat slows the processor.

Temperatures, power and the GPU's load need root (`powermetrics`) or interfaces that Apple does not document: they are
None."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from devices.base import Accelerator, Device, Facts, Host
from devices.checking import checked
from devices.files import read_text
from devices.programs import RunProgram, Seldom
from fedcore.device.readings import Readings
from fedcore.fields.checked import clean_text

__all__ = ["MacOs", "detect", "parse_pmset_battery", "parse_pmset_thermal", "parse_sysctl", "parse_vm_stat"]

_VERSION_FILE: Final = "System/Library/CoreServices/SystemVersion.plist"
_SYSCTLS = ("hw.memsize", "hw.model", "hw.machine", "machdep.cpu.brand_string")
_TIMEOUT_SECONDS, _EVERY_SECONDS = 3.0, 5.0


def parse_vm_stat(text: str) -> int | None:
    """What can be had without swapping, in bytes: free, inactive and speculative pages.

    Example:
        >>> pages = "Pages free: 10.\\nPages inactive: 5.\\nPages speculative: 1.\\n"
        >>> parse_vm_stat("(page size of 16384 bytes)\\n" + pages)
        262144
    """
    size = re.search(r"page size of (\d{3,6}) bytes", text)
    pages = {
        name: int(count)
        for name, count in re.findall(r"^Pages (free|inactive|speculative): +(\d{1,12})\.$", text, re.MULTILINE)
    }
    return int(size.group(1)) * sum(pages.values()) if size and len(pages) == 3 else None


def parse_pmset_battery(text: str) -> tuple[bool | None, float | None]:
    """Whether it is on mains, and the battery's charge in per cent, from `pmset -g batt`.

    Example:
        >>> parse_pmset_battery("Now drawing from 'Battery Power'\\n -InternalBattery-0 (id=1)\\t84%; discharging;")
        (False, 84.0)
    """
    source = re.search(r"Now drawing from '(AC|Battery|UPS) Power'", text)
    charge = re.search(r"-InternalBattery-\d+.*?(\d{1,3})%", text)
    return (source.group(1) == "AC" if source else None), (float(charge.group(1)) if charge else None)


def parse_pmset_thermal(text: str) -> bool | None:
    """Whether heat slows the processor, from `pmset -g therm`: a limit below 100 on Intel, a warning level on Apple's
    own chips.

    Example:
        >>> parse_pmset_thermal(" CPU_Speed_Limit = 85")
        True
        >>> parse_pmset_thermal("Note: No thermal warning level has been recorded")
        False
    """
    if limit := re.search(r"CPU_Speed_Limit\s*=\s*(\d{1,3})\b", text):
        return int(limit.group(1)) < 100
    return False if "No thermal warning level has been recorded" in text else None


def parse_sysctl(text: str) -> dict[str, str]:
    """`sysctl`'s lines, name to value."""
    return {name: clean_text(value)[:80] for name, value in re.findall(r"^([\w.]+): (.+)$", text, re.MULTILINE)}


@dataclass(frozen=True)
class _Snapshot:
    available_bytes: int | None
    on_mains: bool | None
    battery_percent: float | None
    throttled: bool | None


class MacOs:
    """A Mac. Its programs are run in the background every five seconds."""

    def __init__(self, facts: Facts, host: Host) -> None:
        self._facts = facts
        first = _snapshot(host.run)
        self._seldom = Seldom(lambda: _snapshot(host.run), lambda found: _EVERY_SECONDS, first=first, clock=host.clock)

    @property
    def facts(self) -> Facts:
        """What the machine is, found once."""
        return self._facts

    def read(self) -> Readings:
        """The last reading of its sensors, which are read in the background."""
        found = self._seldom.latest()
        total = self._facts.memory_total_bytes
        if found is None:
            return checked({"memory_total_bytes": total})
        available = found.available_bytes
        return checked(
            {
                "memory_total_bytes": total,
                "memory_available_bytes": available
                if available is not None and total is not None and available <= total
                else None,
                "on_mains": found.on_mains,
                "battery_percent": found.battery_percent,
                "throttled": found.throttled,
                "throttle_reason": "heat" if found.throttled else "",
            }
        )

    def close(self) -> None:
        """Nothing of it stays running."""


def detect(host: Host) -> Device | None:
    """The Mac, if it is one."""
    text = read_text(host.root / _VERSION_FILE)
    if text is None:
        return None
    told = parse_sysctl(host.run(["sysctl", *_SYSCTLS], _TIMEOUT_SECONDS) or "")
    brand, size = told.get("machdep.cpu.brand_string"), told.get("hw.memsize", "")
    facts = Facts(
        "macos",
        f"Apple {told['hw.model']}" if "hw.model" in told else "Mac",
        system=_system(text),
        processor=brand,
        machine=host.machine or told.get("hw.machine"),
        memory_total_bytes=int(size) if re.fullmatch(r"\d{9,15}", size) else None,
        # On Apple's own chips the GPU is a part of the chip and of its memory.
        accelerator=Accelerator(f"{brand} GPU", unified=True)
        if brand is not None and brand.startswith("Apple ")
        else None,
    )
    return MacOs(facts, host)


def _snapshot(run: RunProgram) -> _Snapshot | None:
    told = [
        run(command, _TIMEOUT_SECONDS) for command in (["vm_stat"], ["pmset", "-g", "batt"], ["pmset", "-g", "therm"])
    ]
    if all(text is None for text in told):
        return None
    memory, battery, thermal = (text or "" for text in told)
    on_mains, percent = parse_pmset_battery(battery)
    return _Snapshot(parse_vm_stat(memory), on_mains, percent, parse_pmset_thermal(thermal))


def _system(text: str) -> str | None:
    """From a property list; two of its strings are not worth an XML parser in the agent's memory."""
    found = dict(re.findall(r"<key>(ProductName|ProductVersion)</key>\s*<string>([^<>&]{1,60})</string>", text))
    return clean_text(f"{found['ProductName']} {found['ProductVersion']}") if len(found) == 2 else None
