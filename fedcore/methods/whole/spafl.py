# SPDX-License-Identifier: Apache-2.0
"""Server half of SpaFL (Kim et al., arXiv 2406.00431): every node has a sparse model of its own, and only one threshold
for each row of a weight travels. A row whose mean absolute weight is not above its threshold is switched off; weights
and thresholds train together, thresholds are averaged, and what they became moves each node's weights a little.

It is made for training from scratch on images. A pretrained row that is switched off takes what it knew with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedcore.errors import ConfigError
from fedcore.methods.interface import MethodSettings, after_rule, require_within
from fedcore.numbers.rules import MEAN, Rule
from fedcore.round.plan import Plan
from fedcore.round.training import ThresholdTraining

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["SpaFL", "SpaFLSettings"]


class SpaFLSettings(
    MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="spafl"
):
    """`name = "spafl"`."""

    coefficient: float = 0.002
    """Of the sum of exp(-threshold) beside the loss: the larger, the more rows are switched off; the authors' are from
    0.00015 to 0.002, for rates of 0.01 and more. 0.0 leaves thresholds to the loss."""
    gradient_clip: float = 1.0
    """Largest norm of a step's gradient."""
    learning_rate: float = 1e-2
    """Of SGD with momentum 0.9, of weights and thresholds."""

    def __post_init__(self) -> None:
        MethodSettings.__post_init__(self)
        require_within(self, gradient_clip=1e6)
        if not 0 <= self.coefficient <= 1:
            raise ConfigError(f"coefficient is {self.coefficient}, outside 0 to 1", place="method.coefficient")

    @property
    def not_by_coordinate(self) -> str:
        """Threshold by threshold, as their means are: all participants' changes begin with the same ones."""
        return ""

    def described(self) -> str:
        """For a person, in short."""
        return f"{self.name}, coefficient {self.coefficient:g}, {self.steps} steps, {self.bits} bits"


class SpaFL:
    """The exact mean of the thresholds' changes."""

    def __init__(self, settings: SpaFLSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> ThresholdTraining:
        """The round's bounds."""
        settings = self._settings
        return ThresholdTraining(
            coefficient=settings.coefficient,
            gradient_clip=settings.gradient_clip,
            **settings.common(server_round, 0, run_seed),
        )

    def aggregate(
        self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule = MEAN
    ) -> ExactState:
        """The state plus the weighted mean of the thresholds' changes, or what the rule makes of them."""
        return after_rule(state, plan, updates, rule)
