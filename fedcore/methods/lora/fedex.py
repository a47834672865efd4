# SPDX-License-Identifier: Apache-2.0
"""FedEx-LoRA's server half (arXiv 2410.09432): factors are averaged as in FedIT, and what that loses is merged into the
base.

The loss is mean(B_k A_k) - mean(B) mean(A) = sum over k of p_k dB_k (dA_k - mean(dA)), where d is what a participant
changed: all began with the same factors, and what is the same for all cancels. So the residual is a product of the
updates' own numbers, stacked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedcore.methods.lora.factors import LoRASettings
from fedcore.round.plan import Plan
from fedcore.round.training import ResidualTraining
from fedcore.subspaces.schedule import generation_of

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["FedExLoRA", "FedExLoRASettings"]


class FedExLoRASettings(
    LoRASettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedex-lora"
):
    """`name = "fedex-lora"`."""

    @property
    def not_by_coordinate(self) -> str:
        """Each participant's factors stand for themselves in the stack."""
        return "it merges a residual of each participant's factors, whole"

    @property
    def merges_every(self) -> int:
        """Each round's residual is merged."""
        return 1


class FedExLoRA:
    """The exact mean of factors, and the residual of their product."""

    def __init__(self, settings: FedExLoRASettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> ResidualTraining:
        """A generation for each round; A and B go on through all of them."""
        settings = self._settings
        generation = generation_of(server_round, settings.merges_every)
        return ResidualTraining(**settings.factors(server_round), **settings.common(server_round, generation, run_seed))

    def aggregate(self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate]) -> ExactState:
        """Factors plus the weighted means of their changes, and the residual as stacked factors."""
        from fedcore.model.stacking import after_stacking

        return after_stacking(state, plan, updates, lambda name, mean, node: -mean)
