# SPDX-License-Identifier: Apache-2.0
"""When a node may work: what its owner allows (`[policy]` in the node file), judged from the device's readings; no I/O
and no clock.

A limit that a reading flickers around must neither end nor begin work every second. So something has to be wrong for a
while before work ends, and everything right for longer before it begins again, with a margin. What a policy needs and
nobody tells counts as wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from fedcore.device.readings import Readings
from fedcore.errors import ConfigError

__all__ = ["Conditions", "Objection", "PolicySection", "Rule", "Span", "Watch", "objection", "parse_hours"]

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))? +)?(?P<start>\d{1,2}:\d\d)-(?P<end>\d{1,2}:\d\d)")
_HOURS_REMEDY = 'write hours = "22:00-06:00", or "mon-fri 22:00-06:00, sat-sun 00:00-24:00"'
# While it rests, a device must be cooler by this much, and others' load lower by this share, before the limit counts as
# kept.
_COOLER_CELSIUS, _QUIETER_SHARE = 5.0, 0.25
# A board without a battery for its clock starts in 1970, or on the day on which its system was built.
_FIRST_YEAR = 2025

Rule = Literal["hours", "mains_only", "max_temperature_celsius", "idle_only"]


class PolicySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[policy]`: when this node may work; without it, always.

    Work is everything that loads the device: reading the model, catching up, training. A finished update is sent in any
        case."""

    mains_only: bool = False
    """Only while the device is fed from the mains."""
    max_temperature_celsius: float | None = None
    """Only while its hottest sensor is not above this."""
    idle_only: bool = False
    """Only while other programs leave the processors alone."""
    idle_percent: float = 20.0
    """What others may use of all processors together for them to count as idle; agent and worker are not others."""
    hours: str = ""
    """Only within these hours of the local clock: `22:00-06:00`, `mon-fri 22:00-06:00, sat-sun 00:00-24:00`."""
    patience_seconds: float = 10.0
    """How long something may be wrong before work ends (outside the hours: not at all)."""
    settle_seconds: float = 60.0
    """How long all must be right before work begins again."""

    def __post_init__(self) -> None:
        limits = {
            "max_temperature_celsius": (30.0, 110.0, "write a temperature in degrees Celsius, such as 75"),
            "idle_percent": (1.0, 100.0, "write a share of all processors, such as 20"),
            "patience_seconds": (0.0, 3600.0, "write seconds, such as 10"),
            "settle_seconds": (0.0, 3600.0, "write seconds, such as 60"),
        }
        for key, (least, most, remedy) in limits.items():
            value = getattr(self, key)
            if value is not None and not least <= value <= most:
                raise ConfigError(f"{value:g} is outside {least:g} to {most:g}", place=f"policy.{key}", remedy=remedy)
        parse_hours(self.hours)

    @property
    def asks(self) -> bool:
        """Whether it asks for anything."""
        return self.mains_only or self.max_temperature_celsius is not None or self.idle_only or bool(self.hours)


@dataclass(frozen=True)
class Span:
    """Hours of some days; over midnight where the end is not after the start, and then of the day on which it
    begins."""

    days: frozenset[int]
    """0 is Monday."""
    start_minute: int
    end_minute: int

    def covers(self, now: datetime) -> bool:
        """Whether a local time lies within."""
        minute, today, yesterday = 60 * now.hour + now.minute, now.weekday(), (now.weekday() - 1) % 7
        if self.start_minute < self.end_minute:
            return today in self.days and self.start_minute <= minute < self.end_minute
        return (today in self.days and minute >= self.start_minute) or (
            yesterday in self.days and minute < self.end_minute
        )


def parse_hours(text: str, *, place: str = "policy.hours") -> tuple[Span, ...]:
    """The spans of `hours`; none for an empty text.

    Raises:
        ConfigError: It is something else.

    Example:
        >>> parse_hours("sat-sun 8:00-20:30")
        (Span(days=frozenset({5, 6}), start_minute=480, end_minute=1230),)
    """
    return tuple(_span(part.strip().lower(), place) for part in text.split(",")) if text.strip() else ()


def _span(text: str, place: str) -> Span:
    found = _SPAN.fullmatch(text[:60])
    if found is None:
        raise ConfigError(f"{text[:60]!r} are no hours", place=place, remedy=_HOURS_REMEDY)
    start, end = (_minute(found[name], place) for name in ("start", "end"))
    if start in (end, 24 * 60):
        raise ConfigError(f"{text!r} is no time at all", place=place, remedy='the whole day is "00:00-24:00"')
    if found["first"] is None:
        return Span(frozenset(range(7)), start, end)
    first, last = (_day(found[name] or found["first"], place) for name in ("first", "last"))
    return Span(frozenset((first + step) % 7 for step in range((last - first) % 7 + 1)), start, end)


def _minute(text: str, place: str) -> int:
    hours, minutes = map(int, text.split(":"))
    if minutes > 59 or 60 * hours + minutes > 24 * 60:
        raise ConfigError(f"{text} is no time of the day", place=place, remedy=_HOURS_REMEDY)
    return 60 * hours + minutes


def _day(text: str, place: str) -> int:
    if text not in _DAYS:
        raise ConfigError(f"{text!r} is no day", place=place, remedy=f"days are {', '.join(_DAYS)}")
    return _DAYS.index(text)


@dataclass(frozen=True)
class Conditions:
    """What a policy looks at, at one moment."""

    now: datetime
    """Local time."""
    readings: Readings | None = None
    """None while the sensors do not answer."""
    others_percent: float | None = None
    """What other programs use of all processors, over the last seconds."""


@dataclass(frozen=True)
class Objection:
    """Why a node may not work now."""

    rule: Rule
    reason: str

    @property
    def at_once(self) -> bool:
        """Whether it counts from its first moment to its last: the clock does not flicker."""
        return self.rule == "hours"


def objection(policy: PolicySection, conditions: Conditions, *, resting: bool = False) -> Objection | None:
    """The first thing that a policy has against work, or None.

    Args:
        policy: What the owner allows.
        conditions: How things are.
        resting: Whether the node rests already: then limits are lower by a margin.

    Example:
        >>> on_battery = Conditions(datetime(2026, 5, 4), Readings(on_mains=False, battery_percent=73))
        >>> objection(PolicySection(mains_only=True), on_battery).reason
        'policy: on battery (73 %), and mains_only is set'
    """
    readings = conditions.readings
    if policy.hours and (found := _out_of_hours(policy.hours, conditions.now)):
        return Objection("hours", f"policy: {found}")
    if policy.mains_only and (found := _off_mains(readings)):
        return Objection("mains_only", f"policy: {found}")
    if policy.max_temperature_celsius is not None and (
        found := _too_hot(policy.max_temperature_celsius, readings, resting)
    ):
        return Objection("max_temperature_celsius", f"policy: {found}")
    if policy.idle_only and (found := _in_use(policy.idle_percent, conditions.others_percent, resting)):
        return Objection("idle_only", f"policy: {found}")
    return None


def _out_of_hours(hours: str, now: datetime) -> str:
    if now.year < _FIRST_YEAR:
        return f"the clock says {now:%Y-%m-%d}, so nobody knows whether it is within hours = {hours}"
    return "" if any(span.covers(now) for span in parse_hours(hours)) else f"outside hours = {hours}"


def _off_mains(readings: Readings | None) -> str:
    if readings is None or readings.on_mains is None:
        return "mains_only is set, and this device does not tell whether it is on the mains"
    battery = "" if readings.battery_percent is None else f" ({readings.battery_percent:.0f} %)"
    return "" if readings.on_mains else f"on battery{battery}, and mains_only is set"


def _too_hot(limit: float, readings: Readings | None, resting: bool) -> str:
    hottest = None if readings is None else readings.hottest_celsius
    if hottest is None or readings is None:
        return f"max_temperature_celsius = {limit:g} is set, and this device does not tell any temperature"
    if hottest <= (limit - _COOLER_CELSIUS if resting else limit):
        return ""
    sensor = max(readings.temperatures_celsius, key=lambda name: readings.temperatures_celsius[name])
    return f"{sensor} at {hottest:.1f} C, and max_temperature_celsius = {limit:g}"


def _in_use(limit: float, others: float | None, resting: bool) -> str:
    if others is None:
        return "idle_only is set, and this device does not tell how busy its processors are"
    if others <= (limit * (1 - _QUIETER_SHARE) if resting else limit):
        return ""
    return f"other programs use {others:.0f} % of the processors, and idle_percent = {limit:g}"


class Watch:
    """Follows conditions over time: when a node must rest, and when it may work again.

    Args:
        policy: What the owner allows.
        working: Whether the node is at work already: then the first judgement ends it only if it lasts, like every
            other.

    Example:
        >>> watch = Watch(PolicySection(mains_only=True, patience_seconds=10, settle_seconds=60))
        >>> mains, battery = (Conditions(datetime(2026, 5, 4), Readings(on_mains=on)) for on in (True, False))
        >>> [watch.take(battery if 10 <= t < 30 else mains, t) is None for t in (0, 10, 15, 20, 30, 80, 90)]
        [True, True, True, False, False, False, True]
    """

    def __init__(self, policy: PolicySection, *, working: bool = False) -> None:
        self.policy = policy
        self._objection: Objection | None = None
        self._judged = working
        self._changing_since: float | None = None

    def take(self, conditions: Conditions, at_seconds: float) -> str | None:
        """Judge how things are: the reason why the node must rest, or None if it may work. The first judgement counts
        at once.

        Args:
            conditions: How things are.
            at_seconds: A clock that never goes back.
        """
        resting = self._objection is not None
        found = objection(self.policy, conditions, resting=resting)
        if not self._judged:
            self._judged, self._objection = True, found
        elif (found is not None) == resting:
            self._changing_since = None
            if found is not None and self._objection is not None and found.rule != self._objection.rule:
                # One thing is right again, another is not. Numbers alone are no news.
                self._objection = found
        elif self._lasted(found or self._objection, at_seconds):
            self._objection, self._changing_since = found, None
        return None if self._objection is None else self._objection.reason

    def _lasted(self, matter: Objection | None, at_seconds: float) -> bool:
        """Whether a change from work to rest, or back, has lasted long enough."""
        if self._changing_since is None:
            self._changing_since = at_seconds
        wait = self.policy.settle_seconds if self._objection is not None else self.policy.patience_seconds
        return (matter is not None and matter.at_once) or at_seconds - self._changing_since >= wait
