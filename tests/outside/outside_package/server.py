# SPDX-License-Identifier: Apache-2.0
"""The method at the coordinator."""

from __future__ import annotations

from collections.abc import Iterable

from fedcore.methods.interface import MethodSettings, exact_mean
from fedcore.model.state import ExactState
from fedcore.model.update import WeightedUpdate
from fedcore.round.plan import Plan
from outside_package.light import SignTraining


class SignAverageSettings(
    MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="sign-average"
):
    """`name = "sign-average"`."""

    step: float = 1.0
    """Factor on the mean of the signs."""


class SignAverage:
    """The exact mean of scaled signs."""

    def __init__(self, settings: SignAverageSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> SignTraining:
        """The same in every round."""
        return SignTraining(**self._settings.common(server_round, 0, run_seed))

    def aggregate(self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate]) -> ExactState:
        """The state plus the mean."""
        return exact_mean(state, plan, updates, step=self._settings.step)
