# SPDX-License-Identifier: Apache-2.0
"""Whether the kernel or the hardware slows the device down, and why.

Heat: cooling devices that act on a processor's or GPU's clock and are in use; where a device has none, passive trip
points that are passed. Power and voltage: counters of events, which mean something only while they grow. A source that
cannot be read says nothing; only if one can be read and none says yes is a device not throttled."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from devices.files import folder_names, read_integer, read_number, read_text

__all__ = [
    "CoolingDevices",
    "Growth",
    "TripPoints",
    "Verdict",
    "over_current_counters",
    "together",
    "x86_throttle_counters",
]

_SLOWING = re.compile(
    r".*throttle-alert|.*balanced|(?:thermal-)?(?:cpufreq|devfreq|cpuidle|cpu-idle).*|processor|intel-powerclamp",
    re.IGNORECASE,
)
# Zones whose trips are set by a program that wants to be told, and cool nothing.
_TOLD_ONLY = re.compile(r"x86_pkg_temp|int3400.*|b0d4|tcpu|sen\d+|ts.{2}", re.IGNORECASE)
_OVER_CURRENT = {1: "under-voltage", 2: "over-current (average)", 3: "over-current (peak)"}


@dataclass(frozen=True)
class Verdict:
    """Throttled or not; None is not known."""

    throttled: bool | None = None
    reason: str = ""


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict of all sources.

    Example:
        >>> together([Verdict(None), Verdict(False), Verdict(True, "heat"), Verdict(True, "under-voltage")])
        Verdict(throttled=True, reason='heat, under-voltage')
        >>> together([Verdict(None), Verdict(False)]).throttled
        False
    """
    known = [verdict for verdict in verdicts if verdict.throttled is not None]
    if not known:
        return Verdict()
    reasons = dict.fromkeys(verdict.reason for verdict in known if verdict.throttled and verdict.reason)
    return Verdict(any(verdict.throttled for verdict in known), ", ".join(reasons))


class CoolingDevices:
    """Cooling devices that slow something down; a fan is none."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._states: list[tuple[str, str]] = []

    def scan(self) -> None:
        """Look for them again."""
        folder = self._root / "sys/class/thermal"
        self._states = []
        for entry in folder_names(folder, "cooling_device") or ():
            kind = (read_text(folder / entry / "type", 256) or "").replace("_", "-")
            if _SLOWING.fullmatch(kind):
                self._states.append((kind, str(folder / entry / "cur_state")))

    def verdict(self) -> Verdict:
        """Throttled by those whose state is above zero."""
        states = [(kind, state) for kind, path in self._states if (state := read_integer(path)) is not None]
        if not states:
            return Verdict()
        active = list(dict.fromkeys(kind.lower() for kind, state in states if state > 0))
        alerts = [kind for kind in active if kind.endswith("alert")] or active
        return Verdict(bool(active), f"heat ({', '.join(alerts[:3])})" if active else "")


class TripPoints:
    """Passive trip points: above such a temperature the kernel slows down."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._trips: list[tuple[str, str, float]] = []

    def scan(self) -> None:
        """Read the trip points again."""
        folder = self._root / "sys/class/thermal"
        self._trips = []
        for entry in folder_names(folder, "thermal_zone") or ():
            zone = folder / entry
            kind = read_text(zone / "type", 256) or ""
            if not kind or _TOLD_ONLY.fullmatch(kind):
                continue
            passive = [
                limit
                for file in folder_names(zone, "trip_point_") or ()
                if file.endswith("_type") and read_text(zone / file, 64) == "passive"
                # One that is not set is 0 or far below.
                if (limit := read_number(zone / f"{file.removesuffix('_type')}_temp")) is not None and limit > 0
            ]
            if passive:
                self._trips.append((kind, str(zone / "temp"), min(passive)))

    def verdict(self) -> Verdict:
        """Throttled in those zones that are at their lowest passive trip point or above."""
        temperatures = [
            (kind, value, limit) for kind, path, limit in self._trips if (value := read_number(path)) is not None
        ]
        if not temperatures:
            return Verdict()
        hot = [kind for kind, value, limit in temperatures if value >= limit]
        return Verdict(bool(hot), f"heat ({', '.join(hot[:3])})" if hot else "")


class Growth:
    """Counters of events since the start of the system, of which only growth matters.

    Args:
        counters: Reason and file of each.
    """

    def __init__(self, counters: Iterable[tuple[str, str]]) -> None:
        self._counters = list(counters)
        self._before: dict[str, int] = {}

    def verdict(self) -> Verdict:
        """Throttled for the reasons whose counters have grown since the reading before; not known at the first one."""
        now = {path: count for _, path in self._counters if (count := read_integer(path)) is not None}
        before, self._before = self._before, now
        if not now.keys() & before.keys():
            return Verdict()
        grown = dict.fromkeys(
            reason for reason, path in self._counters if path in now and now[path] > before.get(path, now[path])
        )
        return Verdict(bool(grown), ", ".join(grown))


def over_current_counters(root: Path) -> list[tuple[str, str]]:
    """A Jetson's counters of under-voltage and over-current events (`soctherm_oc`)."""
    folder = root / "sys/class/hwmon"
    found = []
    for entry in folder_names(folder, "hwmon") or ():
        if read_text(folder / entry / "name", 64) == "soctherm_oc":
            for number, reason in _OVER_CURRENT.items():
                found.append((reason, str(folder / entry / f"oc{number}_event_cnt")))
    return found


def x86_throttle_counters(root: Path) -> list[tuple[str, str]]:
    """Intel processors' counters of times that a core or a package was slowed for its heat."""
    folder = root / "sys/devices/system/cpu"
    found = []
    for entry in folder_names(folder, "cpu") or ():
        if re.fullmatch(r"cpu\d+", entry):
            for name in ("package_throttle_count", "core_throttle_count"):
                if (folder / entry / "thermal_throttle" / name).exists():
                    found.append(("heat (processor)", str(folder / entry / "thermal_throttle" / name)))
    return found
