# SPDX-License-Identifier: Apache-2.0
"""Server half of FedTT and FedTT+ (Ghiasvand et al., arXiv 2410.13097): bottleneck adapters whose two matrices are
tensor trains, so that a few hundred numbers of each travel.

- FedTT: all cores train, and each is averaged by itself. A product of means is not the mean of products: not exact.
- FedTT+: one core of each adapter trains in a round, the same for everybody, the others stand. A matrix is linear in
  one of its cores, so the mean of the cores makes the mean of the matrices: exact in each round.

The schedule of FedTT+ is adaptive in the paper, by a rule that its abstract does not tell. Here cores take turns, up
and down in different rounds, and up's last one comes first: it is zero, and before it moves no other has a gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedcore.errors import ConfigError
from fedcore.methods.interface import MethodSettings, after_rule, require_within
from fedcore.numbers.rules import MEAN, Rule
from fedcore.round.plan import Plan
from fedcore.round.training import TensorTrainTraining
from fedcore.round.training.tensortrain import ALL_CORES, BEHIND
from fedcore.weights.tensortrain import CORES

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["FedTT", "FedTTPlusSettings", "FedTTSettings"]


class FedTTSettings(
    MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedtt"
):
    """`name = "fedtt"`."""

    bottleneck: int = 64
    """Numbers between an adapter's two matrices."""
    rank: int = 5
    """Of the tensor trains."""
    target_modules: tuple[str, ...] = BEHIND
    """Ends of names of the layers that have an adapter behind them."""
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        MethodSettings.__post_init__(self)
        require_within(self, bottleneck=65_536, rank=4096)
        if not 0 < len(self.target_modules) <= 256 or not all(self.target_modules):
            raise ConfigError("target_modules is no list of names", place="method.target_modules")

    @property
    def not_by_coordinate(self) -> str:
        """Core by core, as their means are: all participants' changes begin with the same cores."""
        return ""

    def described(self) -> str:
        """For a person, in short."""
        return f"{self.name}, bottleneck {self.bottleneck}, rank {self.rank}, {self.steps} steps, {self.bits} bits"

    def trained(self, server_round: int) -> tuple[str, ...]:
        """The cores that train in a round."""
        return ALL_CORES


class FedTTPlusSettings(
    FedTTSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedtt+"
):
    """`name = "fedtt+"`."""

    learning_rate: float = 3e-2

    def trained(self, server_round: int) -> tuple[str, ...]:
        """One, in turn: up's from the last to the first, between them down's from the first to the last.

        Example:
            >>> [FedTTPlusSettings().trained(server_round)[0] for server_round in (1, 2, 3, 4, 11)]
            ['up/4', 'down/0', 'up/3', 'down/1', 'up/4']
        """
        turn, is_down = divmod((server_round - 1) % (2 * CORES), 2)
        return (f"down/{turn}",) if is_down else (f"up/{CORES - 1 - turn}",)


class FedTT:
    """The exact mean of the cores' changes."""

    def __init__(self, settings: FedTTSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> TensorTrainTraining:
        """Which cores train, and the round's bounds."""
        settings = self._settings
        return TensorTrainTraining(
            bottleneck=settings.bottleneck,
            train_rank=settings.rank,
            target_modules=settings.target_modules,
            trained=settings.trained(server_round),
            **settings.common(server_round, 0, run_seed),
        )

    def aggregate(
        self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule = MEAN
    ) -> ExactState:
        """The state plus the weighted mean of the cores' changes, or what the rule makes of them."""
        return after_rule(state, plan, updates, rule)
