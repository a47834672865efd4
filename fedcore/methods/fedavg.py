# SPDX-License-Identifier: Apache-2.0
"""Federated averaging of full fine-tuning: every number of every target layer goes up as its change, and down as the mean of the changes.

Source: McMahan et al., arXiv 1602.05629, algorithm 1, with changes in place of weights (GradualDiff-Fed sends the same).
"""

from __future__ import annotations

from collections.abc import Iterable

from fedcore.method import SteppedSettings, exact_mean
from fedcore.plan import Plan
from fedcore.state import ExactState
from fedcore.training import DenseTraining
from fedcore.update import WeightedUpdate

__all__ = ["FedAvg", "FedAvgSettings"]


class FedAvgSettings(SteppedSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedavg"):
    """`name = "fedavg"`."""


class FedAvg:
    """The exact mean of whole changes."""

    def __init__(self, settings: FedAvgSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> DenseTraining:
        """The round's bounds."""
        return DenseTraining(**self._settings.common(server_round, 0, run_seed))

    def aggregate(self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate]) -> ExactState:
        """The state plus the weighted mean of the changes."""
        settings = self._settings
        return exact_mean(state, plan, updates, step=settings.server_step, momentum=settings.server_momentum)
