# SPDX-License-Identifier: Apache-2.0
"""From which uncertainty on a device asks, learned on the device from what it asked (FedHLM, arXiv 2507.00082).

The hard comparison is replaced by s((t - u) / T), s the logistic function, t the threshold, u a text's uncertainty.
What is made small is

    mean[ s((t - u) / T) risk(u) ] + cost mean[ s((u - t) / T) ]

risk(u) is the chance that the large model would say something else, a line through what it said of the texts that were
asked; cost is what a text that is asked may cost, in the same unit. Where risk rises, the best threshold is where it
comes to the cost. Nothing but the threshold, rounded to 2^-14, leaves the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["THRESHOLD_BITS", "Checked", "Risk", "fitted_risk", "learned", "objective", "slope", "units_of"]

THRESHOLD_BITS = 14
"""A device's threshold is a multiple of 2**-14: an int16 holds 0 to 1."""
_STEPS, _RATE = 150, 0.05


@dataclass(frozen=True)
class Checked:
    """A text that was asked: its uncertainty, and whether the large model said something else than the small one."""

    u: float
    other: bool


@dataclass(frozen=True)
class Risk:
    """The chance that the large model would say something else, as a line in u held to 0 to 1."""

    at_zero: float
    rise: float

    def of(self, u: float) -> float:
        """At an uncertainty.

        Example:
            >>> Risk(0.1, 0.5).of(0.4), Risk(-0.5, 0.5).of(0.5), Risk(0.9, 1.0).of(1.0)
            (0.30000000000000004, 0.0, 1.0)
        """
        return min(1.0, max(0.0, self.at_zero + self.rise * u))


def fitted_risk(checked: Sequence[Checked]) -> Risk:
    """The line with the least squares; level where uncertainties do not differ, or where it would fall: a small model
    that is less often wrong the less certain it is has told nothing.

    Args:
        checked: At least one.

    Example:
        >>> fitted_risk([Checked(0.0, False), Checked(1.0, True)])
        Risk(at_zero=0.0, rise=1.0)
        >>> fitted_risk([Checked(0.0, True), Checked(1.0, False)])
        Risk(at_zero=0.5, rise=0.0)
    """
    count = len(checked)
    middle, mean = sum(one.u for one in checked) / count, sum(one.other for one in checked) / count
    spread = sum((one.u - middle) ** 2 for one in checked)
    rise = sum((one.u - middle) * (one.other - mean) for one in checked) / spread if spread > 0 else 0.0
    return Risk(mean - rise * middle, rise) if rise > 0 else Risk(mean, 0.0)


def objective(threshold: float, seen: Sequence[float], risk: Risk, cost: float, softness: float) -> float:
    """What is made small.

    Args:
        threshold: t.
        seen: u of every text, asked or not.
        risk: Of an answer of the small model.
        cost: Of asking.
        softness: T.
    """
    kept = sum(_logistic((threshold - u) / softness) * risk.of(u) for u in seen)
    asked = sum(_logistic((u - threshold) / softness) for u in seen)
    return (kept + cost * asked) / len(seen)


def slope(threshold: float, seen: Sequence[float], risk: Risk, cost: float, softness: float) -> float:
    """Its derivative by the threshold."""

    def one(u: float) -> float:
        s = _logistic((threshold - u) / softness)
        return s * (1 - s) / softness * (risk.of(u) - cost)

    return sum(map(one, seen)) / len(seen)


def learned(threshold: float, seen: Sequence[float], checked: Sequence[Checked], cost: float, softness: float) -> float:
    """A device's own next threshold, 0 to 1: steps downhill from the present one, of which the best is taken.

    Args:
        threshold: The present one.
        seen: u of every text since, at least one.
        checked: Those that were asked; without any, the threshold stays.
        cost: Of asking.
        softness: T.
    """
    if not checked:
        return threshold
    risk, t = fitted_risk(checked), threshold
    best, least = t, objective(t, seen, risk, cost, softness)
    for _ in range(_STEPS):
        t = min(1.0, max(0.0, t - _RATE * slope(t, seen, risk, cost, softness)))
        value = objective(t, seen, risk, cost, softness)
        if value < least:
            best, least = t, value
    return best


def units_of(threshold: float) -> int:
    """A threshold as it travels, in units of 2**-14.

    Example:
        >>> units_of(0.0), units_of(0.5), units_of(1.0)
        (0, 8192, 16384)
    """
    return round(threshold * (1 << THRESHOLD_BITS))


def _logistic(x: float) -> float:
    # Of a large negative number the exponential would overflow.
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
