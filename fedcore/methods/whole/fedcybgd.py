# SPDX-License-Identifier: Apache-2.0
"""Server half of FedCyBGD (Wang et al., arXiv 2406.11187): nodes train one after the other, each one block of the model
in full, and hand it on. On a node only that block lies in float32 with its gradients and moments, and only it travels
up.

A round has one participant (`[round] cohort = 1, order = "cycle"`), so its change is the round's mean: exact. What the
paper's code does beside that is left out: it hands on a random part of the blocks that changed, and then no two nodes
have the same model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedcore.methods.interface import MethodSettings, exact_mean
from fedcore.round.plan import Plan
from fedcore.round.training import BlockTraining
from fedcore.round.training.dense import BlockOrder

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["FedCyBGD", "FedCyBGDSettings"]


class FedCyBGDSettings(
    MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedcybgd"
):
    """`name = "fedcybgd"`."""

    order: BlockOrder = "ascending"
    """Of blocks in a cycle: from the first, from the last, or another order each time."""

    @property
    def in_turn(self) -> bool:
        """Each node goes on from what the last one left."""
        return True

    @property
    def not_by_coordinate(self) -> str:
        """A round has one update."""
        return "one node trains at a time: there is nothing to compare its update with"

    def described(self) -> str:
        """For a person, in short."""
        return f"{self.name}, one block in turn ({self.order}), {self.steps} steps, {self.bits} bits"


class FedCyBGD:
    """The change of the node whose turn it was."""

    def __init__(self, settings: FedCyBGDSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> BlockTraining:
        """The turn, from which the block follows, and the round's bounds."""
        common = self._settings.common(server_round, 0, run_seed)
        return BlockTraining(turn=server_round - 1, order=self._settings.order, **common)

    def aggregate(self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate]) -> ExactState:
        """The state plus the weighted mean of the block's changes: of one participant, its change."""
        return exact_mean(state, plan, updates)
