# SPDX-License-Identifier: Apache-2.0
"""FedKSeed and FedKSeed-Pro, server halves (arXiv 2312.06353): one scalar for each of K directions up and down, and
forward passes only.

Every weight of the target layers may move, along K directions that are drawn once for the run. What is learned is the
table of the K coefficients, so whoever was away needs nothing but the table. Tensors that are trained whole (a task
head) go as in every method.

Unlike the paper's table of slopes, which needs one learning rate for the whole run, ours holds steps (slope times
learning rate): it means the same whatever a learning rate's course is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedcore.fields.types import Bits
from fedcore.methods.interface import MethodSettings, exact_mean, require_within
from fedcore.round.plan import Plan
from fedcore.round.training import MAX_DIRECTIONS, ScalarTraining

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["FedKSeed", "FedKSeedProSettings", "FedKSeedSettings"]


class FedKSeedSettings(
    MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedkseed"
):
    """`name = "fedkseed"`."""

    num_seeds: int = 1024
    """Directions, K. The paper has 4096; who comes new makes a pass over all weights for each that was used."""
    perturbation: float = 5e-4
    """How far a weight is moved either way to measure the loss's slope, epsilon; the paper's."""
    learning_rate: float = 1e-3
    """A step moves every weight by this times one slope. The paper has 3e-7 for 3 billion weights, where slopes are
    steeper."""
    bits: Bits = 16

    def __post_init__(self) -> None:
        MethodSettings.__post_init__(self)
        require_within(self, num_seeds=MAX_DIRECTIONS, perturbation=1.0)

    @property
    def not_by_coordinate(self) -> str:
        """Each participant draws its own directions, of far more than it has steps."""
        return "each participant moves along a few directions of its own: most are zero where one is not"

    @property
    def biased(self) -> bool:
        """Whether directions are drawn by the slopes found along them."""
        return False


class FedKSeedProSettings(
    FedKSeedSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedkseed-pro"
):
    """`name = "fedkseed-pro"`: directions along which the loss changed more are drawn more often, so fewer are needed.

    The paper's server sends probabilities. Here the sums that they follow from are two more rows of the state, and each
    node draws by what was published."""

    num_seeds: int = 512

    @property
    def biased(self) -> bool:
        """Whether directions are drawn by the slopes that were measured along them."""
        return True


class FedKSeed:
    """The exact mean of the participants' tables, added to the run's."""

    def __init__(self, settings: FedKSeedSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> ScalarTraining:
        """The round's bounds; the directions follow from the run's seed."""
        settings = self._settings
        return ScalarTraining(
            num_directions=settings.num_seeds,
            perturbation=settings.perturbation,
            biased=settings.biased,
            first_learning_rate=None if settings.learning_rate_decay in (None, 1.0) else settings.learning_rate,
            **settings.common(server_round, 0, run_seed),
        )

    def aggregate(self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate]) -> ExactState:
        """The table plus the weighted mean of the tables; a direction that a participant did not use counts as zero."""
        return exact_mean(state, plan, updates)
