# SPDX-License-Identifier: Apache-2.0
"""Ferret's server half (arXiv 2409.06277): nodes train every weight as in full fine-tuning, and send K numbers of a
layer.

A layer's change d is sent as its inner products with K random directions. (1 / K) sum over k of z_k (z_k . d) is d on
average, with a random error of sqrt((numbers - 1) / K) times its size; participants share the directions, so their mean
has that error once.

The paper draws new directions each round (`fresh`), and so the errors of the rounds average out: what a round learned
is merged into the base. The authors' code (github.com/allen4747/Ferret) keeps its directions (`pool`); then a layer
moves in a space of K dimensions, and only there, but nothing is merged. Their directions are normal ones cut off at 1 /
sqrt(numbers), which without the paper's factor rebuild about a third of a change; a server learning rate of up to 10
makes up for it. With signs there is no such factor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from fedcore.fields.types import Bits
from fedcore.methods.interface import MethodSettings, after_rule, require_within
from fedcore.numbers.rules import MEAN, Rule
from fedcore.round.plan import Plan
from fedcore.round.training import MAX_DIRECTIONS, SketchTraining
from fedcore.subspaces.schedule import generation_of

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["Ferret", "FerretSettings"]


class FerretSettings(
    MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="ferret"
):
    """`name = "ferret"`."""

    num_directions: int = 200
    """Of a layer, K; as in the authors' script."""
    schedule: Literal["fresh", "pool"] = "fresh"
    """`fresh`: new directions each round, and what was learned is merged into the base; `pool`: the same for the whole
    run."""
    allocation: Literal["norm", "equal"] = "norm"
    """`norm`: a node uses fewer of the directions, drawn at random, for a layer that changed less, as the paper does;
    `equal`: all."""
    server_learning_rate: float = 1.0
    """Factor on what is rebuilt. At 1 it is right on average; less of it has less random error. What the authors' code
    rebuilds is a third of it on average, since it cuts its normal numbers off."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """Of the weights in a round: `sgd`, plain, is the authors', and wants learning rates of its own."""
    bits: Bits = 16

    def __post_init__(self) -> None:
        MethodSettings.__post_init__(self)
        require_within(self, num_directions=MAX_DIRECTIONS, server_learning_rate=1e6)

    @property
    def not_by_coordinate(self) -> str:
        """Coefficients are of the same directions for all, if all are used."""
        return (
            ""
            if self.allocation == "equal"
            else 'with allocation = "norm" each participant draws its own directions: most are zero where one is not'
        )

    @property
    def merges_every(self) -> int:
        """Each round's change is merged with `fresh`."""
        return 1 if self.schedule == "fresh" else 0


class Ferret:
    """The exact mean of the participants' coefficients."""

    def __init__(self, settings: FerretSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> SketchTraining:
        """The round's bounds; the directions follow from the run's seed and the generation."""
        settings = self._settings
        generation = generation_of(server_round, settings.merges_every)
        return SketchTraining(
            num_directions=settings.num_directions,
            allocation=settings.allocation,
            server_learning_rate=settings.server_learning_rate,
            optimiser=settings.optimiser,
            **settings.common(server_round, generation, run_seed),
        )

    def aggregate(
        self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule = MEAN
    ) -> ExactState:
        """Coefficients plus the weighted mean of the participants', or what the rule makes of them."""
        return after_rule(state, plan, updates, rule)
