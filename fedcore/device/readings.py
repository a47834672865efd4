# SPDX-License-Identifier: Apache-2.0
"""What a device's sensors say at one moment: made by `devices`, carried by telemetry, shown by the coordinator.

Every value has its unit in its name. What cannot be read is None, never a number that stands for it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from fedcore.fields.checked import Bytes, clean_texts

__all__ = ["Celsius", "Percent", "Readings", "Watts"]

Celsius = Annotated[float, Meta(ge=-60, le=200)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Watts = Annotated[float, Meta(ge=0, le=10_000)]
_SensorName = Annotated[str, Meta(min_length=1, max_length=40)]


class Readings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reading of all sensors.

    Example:
        >>> Readings(temperatures_celsius={"cpu": 44.2, "gpu": 45.9}).hottest_celsius
        45.9
        >>> Readings().power_watts is None
        True
    """

    memory_total_bytes: Bytes | None = None
    """What the system sees; on unified memory the accelerator's share is in it, counted once."""
    memory_available_bytes: Bytes | None = None
    """What can be had without swapping."""
    accelerator_total_bytes: Bytes | None = None
    """The accelerator's own memory; None where there is none, or where it shares the system's."""
    accelerator_available_bytes: Bytes | None = None
    temperatures_celsius: Annotated[dict[_SensorName, Celsius], Meta(max_length=32)] = {}
    """By sensor; a sensor that is switched off is not in it."""
    power_watts: Watts | None = None
    """Drawn by the whole board or machine where that is measured, else None."""
    power_mode: str = ""
    """The board's name for its power budget: `15W`, `MAXN_SUPER`; empty where there is none."""
    throttled: bool | None = None
    """Whether the device runs slower than it could, because of heat, power or voltage."""
    throttle_reason: str = ""
    on_mains: bool | None = None
    """Whether it is fed from the mains; a device without a battery is, if it says so."""
    battery_percent: Percent | None = None
    processor_percent: Percent | None = None
    """Of all processors, since the reading before."""
    accelerator_percent: Percent | None = None

    def __post_init__(self) -> None:
        clean_texts(self, "power_mode", "throttle_reason")

    @property
    def hottest_celsius(self) -> float | None:
        """The highest temperature, or None."""
        return max(self.temperatures_celsius.values(), default=None)
