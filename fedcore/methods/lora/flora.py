# SPDX-License-Identifier: Apache-2.0
"""FLoRA's server half (arXiv 2409.05976): participants' factors are stacked instead of averaged, and their product goes
into the base.

sum over k of p_k B_k A_k is one product of stacked factors, so the round is exact, where the product of averaged
factors is not. Every replica merges it before the next round, in which A is drawn anew and B is zero: the learned part
is not bound to rank r over rounds, and where each node draws its own A, as in the authors' code, not in a round
either."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedcore.methods.lora.factors import LoRASettings
from fedcore.round.plan import Plan
from fedcore.round.training import StackedTraining
from fedcore.subspaces.schedule import generation_of

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["FLoRA", "FLoRASettings"]


class FLoRASettings(LoRASettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="flora"):
    """`name = "flora"`."""

    own_factors: bool = True
    """Each node draws its own A in each round, as in the authors' code: what is merged has up to r times as many
    directions as there are nodes. False: all begin with the same. No byte more travels either way, as the coordinator
    draws them too."""

    @property
    def not_by_coordinate(self) -> str:
        """Each participant's factors stand for themselves in the stack."""
        return "it stacks each participant's factors, whole"

    @property
    def merges_every(self) -> int:
        """Each round's product is merged."""
        return 1


class FLoRA:
    """The exact mean of the participants' products, as stacked factors."""

    def __init__(self, settings: FLoRASettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> StackedTraining:
        """A generation for each round."""
        settings = self._settings
        generation = generation_of(server_round, settings.merges_every)
        return StackedTraining(
            own=settings.own_factors,
            **settings.factors(server_round),
            **settings.common(server_round, generation, run_seed),
        )

    def aggregate(self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate]) -> ExactState:
        """Whole factors side by side: what an update says of A is its change, so the first values are added to it."""
        from fedcore.model.stacking import after_stacking, first_factors

        training = plan.training
        assert isinstance(training, StackedTraining)
        return after_stacking(state, plan, updates, first_factors(lambda node: training.node_seed(state.seeds, node)))
