# SPDX-License-Identifier: Apache-2.0
"""The method at the coordinator: its keys in a job's [method], and how updates become the next state."""

from __future__ import annotations

from collections.abc import Iterable

from fedcore.methods.interface import MethodSettings, exact_mean
from fedcore.model.state import ExactState
from fedcore.model.update import WeightedUpdate
from fedcore.round.plan import Plan
from shrinking_average.light import ShrinkingTraining


class Settings(MethodSettings, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="shrinking-average"):
    """`name = "shrinking-average"`."""

    power: float = 0.5
    """The mean of round t counts t**-power."""


class ShrinkingAverage:
    """Pure functions: the same rounds give the same digest, whatever happened in between."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> ShrinkingTraining:
        """What the plan of a round says."""
        return ShrinkingTraining(**self._settings.common(server_round, 0, run_seed))

    def aggregate(self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate]) -> ExactState:
        """The state plus a part of the exact mean."""
        return exact_mean(state, plan, updates, step=plan.round**-self._settings.power)
