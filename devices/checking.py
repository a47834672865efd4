# SPDX-License-Identifier: Apache-2.0
"""Readings from values of which each may be absurd: what lies outside the bounds of `Readings` is left out, the rest
stays."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fedcore.device.readings import Celsius, Readings

__all__ = ["checked", "plausible_temperatures"]

_MOST_SENSORS = 32


def checked(values: Mapping[str, object]) -> Readings:
    """Readings with every value that they allow.

    Args:
        values: By field of `Readings`; None for what is not known.

    Example:
        >>> found = checked({"battery_percent": 104, "power_watts": 5.2, "on_mains": None})
        >>> found.battery_percent, found.power_watts
        (None, 5.2)
    """
    known = {name: value for name, value in values.items() if value is not None}
    try:
        return msgspec.convert(known, Readings)
    except msgspec.ValidationError:
        return msgspec.convert({name: value for name, value in known.items() if _allowed({name: value})}, Readings)


def plausible_temperatures(found: Mapping[str, float]) -> dict[str, float]:
    """What can be temperatures, at most 32 and then the hottest. A Jetson's zone that is switched off says -256.

    Example:
        >>> plausible_temperatures({"cpu": 44.2, "gpu": -256.0})
        {'cpu': 44.2}
    """
    possible = {name: value for name, value in found.items() if _is_temperature(value)}
    if len(possible) <= _MOST_SENSORS:
        return possible
    return dict(sorted(possible.items(), key=lambda item: -item[1])[:_MOST_SENSORS])


def _allowed(value: dict[str, object]) -> bool:
    try:
        msgspec.convert(value, Readings)
    except msgspec.ValidationError:
        return False
    return True


def _is_temperature(value: float) -> bool:
    try:
        msgspec.convert(value, Celsius)
    except msgspec.ValidationError:
        return False
    return True
