# SPDX-License-Identifier: Apache-2.0
"""The memory monitor: readings in, advice out; no I/O and no clock.

A node plans so that it fits. What was planned can still be overtaken: another program takes the device's memory, the
owner lowers the budget, a data loader leaks. The monitor says when to step down, and when stepping down was not enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Advice", "Monitor", "Reading"]

# Of the budget. A plan leaves four percent free, so a worker that runs as planned stays below.
_SOFT_SHARE = 0.97
# Below this much available memory the kernel starts to kill; the larger of the two.
_FLOOR_BYTES = 200 * 2**20
_FLOOR_SHARE = 0.03
# Share of time in which some task of the device waited for memory, over ten seconds.
_PRESSURE_PERCENT = 25.0
# After advice, what it changed must have had time to show.
_REST_SECONDS = 5.0


class Advice(Enum):
    """What to do about a reading."""

    FINE = "fine"
    STEP_DOWN = "step down"
    """Before the next micro-batch."""
    END = "end"
    """The worker is over its budget although it was told to step down: end it, it goes on smaller from its last
    finished interval."""


@dataclass(frozen=True)
class Reading:
    """One sample; None is unknown."""

    at_seconds: float
    agent_bytes: int
    worker_bytes: int | None
    device_available_bytes: int | None = None
    device_total_bytes: int | None = None
    pressure_percent: float | None = None

    @property
    def used_bytes(self) -> int:
        """Agent and worker together."""
        return self.agent_bytes + (self.worker_bytes or 0)

    def described(self) -> str:
        """The reading in words, for a report."""
        words = [f"agent and worker {self.used_bytes / 2**20:,.0f} MiB"]
        if self.device_available_bytes is not None:
            words.append(f"{self.device_available_bytes / 2**20:,.0f} MiB available on the device")
        if self.pressure_percent is not None:
            words.append(f"memory pressure {self.pressure_percent:.0f} %")
        return ", ".join(words)


class Monitor:
    """Watches one worker against one budget.

    Args:
        budget_bytes: For agent and worker together.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.peak_bytes = 0
        self.last: Reading | None = None
        self.reason = ""
        self._rest_until = 0.0
        self._told = False

    def take(self, reading: Reading) -> Advice:
        """Take a reading of the worker's memory, and say what it asks for."""
        self.last = reading
        self.peak_bytes = max(self.peak_bytes, reading.used_bytes)
        if reading.worker_bytes is None:
            return Advice.FINE
        problem = self._problem(reading)
        if problem is None:
            self._told = self._told and reading.at_seconds < self._rest_until
            return Advice.FINE
        if reading.at_seconds < self._rest_until:
            return Advice.FINE
        self.reason = problem
        over = reading.used_bytes > self.budget_bytes
        advice = Advice.END if over and self._told else Advice.STEP_DOWN
        self._told = True
        self._rest_until = reading.at_seconds + _REST_SECONDS
        return advice

    def set_budget(self, budget_bytes: int) -> None:
        """The owner changed the budget."""
        self.budget_bytes = budget_bytes
        self._rest_until = 0.0

    def stepped_down(self, at_seconds: float) -> None:
        """The worker took a smaller plan: give it time."""
        self._rest_until = at_seconds + _REST_SECONDS
        self._told = False

    def _problem(self, reading: Reading) -> str | None:
        soft = self.budget_bytes * _SOFT_SHARE
        if reading.used_bytes > soft:
            used, budget = reading.used_bytes / 2**20, self.budget_bytes / 2**20
            return f"{used:,.0f} MiB used, {soft / 2**20:,.0f} MiB is the soft limit of {budget:,.0f} MiB"
        available, total = reading.device_available_bytes, reading.device_total_bytes
        if available is not None and total is not None:
            floor = min(max(_FLOOR_BYTES, _FLOOR_SHARE * total), total / 4)
            if available < floor:
                return f"only {available / 2**20:,.0f} MiB are available on the device"
        if reading.pressure_percent is not None and reading.pressure_percent > _PRESSURE_PERCENT:
            return f"memory pressure {reading.pressure_percent:.0f} %"
        return None
