# SPDX-License-Identifier: Apache-2.0
"""Server halves of the methods that average LoRA's factors: W + alpha / r B A, with A (r, n) from the run's seed and B
(m, r) from zero.

- FedIT (github.com/JayZhang42/FederatedGPT-Shepherd): A and B train and are averaged each by itself. The mean of
  products is not the product of means, so the model is not the mean of the participants' models: the only method here
  that is not exact.
- FFA-LoRA (arXiv 2403.12313): A stays as it was drawn, B trains: exact.
- RoLoRA (arXiv 2502.01755): one factor trains in odd rounds, the other in even ones, the same for everybody: exact.
- FedSA-LoRA (arXiv 2410.01463): both train, only A is shared; B and the task head stay on their node.

Those that repair FedIT by stacking factors are files of their own: `flora`, `fedex`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from fedcore.methods.interface import MethodSettings, after_rule, require_within
from fedcore.numbers.rules import MEAN, Rule
from fedcore.round.plan import Plan
from fedcore.round.training import Factor, FactorTraining

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["FFALoRASettings", "FedITSettings", "FedSALoRASettings", "LoRA", "LoRASettings", "RoLoRASettings"]


class LoRASettings(MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name"):
    """What all of them have."""

    rank: int = 8
    """Rows of A, r."""
    alpha: float = 16.0
    """The factors' product counts alpha / r times."""

    def __post_init__(self) -> None:
        MethodSettings.__post_init__(self)
        require_within(self, rank=4096, alpha=1e6)

    @property
    def not_by_coordinate(self) -> str:
        """Factor by factor, as their means are: all participants' changes begin with the same factors."""
        return ""

    def described(self) -> str:
        """For a person, in short."""
        return f"{self.name}, rank {self.rank}, alpha {self.alpha:g}, {self.steps} steps, {self.bits} bits"

    @property
    def shared(self) -> tuple[Factor, ...]:
        """The factors in the state."""
        return ("A", "B")

    def trained(self, server_round: int) -> tuple[Factor, ...]:
        """The factors that train in a round."""
        return ("A", "B")

    def factors(self, server_round: int) -> dict[str, Any]:
        """What a round's plan says of the factors, as `fedcore.round.training.FactorTraining` has it."""
        return {"rank": self.rank, "alpha": self.alpha, "trained": self.trained(server_round), "shared": self.shared}


class FedITSettings(LoRASettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedit"):
    """`name = "fedit"`."""


class FFALoRASettings(
    LoRASettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="ffa-lora"
):
    """`name = "ffa-lora"`."""

    projection: Literal["uniform", "coordinate"] = "uniform"
    """A's rows: uniform numbers, as the authors draw them, or signed rows of the identity, as FedKRSO's are: with these
    it is FedKRSO with one subspace that never changes, and tells what K of them are worth."""

    def factors(self, server_round: int) -> dict[str, Any]:
        """With A's rows."""
        return {**super().factors(server_round), "coordinates": self.projection == "coordinate"}

    @property
    def shared(self) -> tuple[Factor, ...]:
        """A never changes."""
        return ("B",)

    def trained(self, server_round: int) -> tuple[Factor, ...]:
        """A never changes."""
        return ("B",)


class RoLoRASettings(
    LoRASettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="rolora"
):
    """`name = "rolora"`."""

    def trained(self, server_round: int) -> tuple[Factor, ...]:
        """B first: while it is zero, A has no gradient."""
        return ("B",) if server_round % 2 else ("A",)


class FedSALoRASettings(
    LoRASettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedsa-lora"
):
    """`name = "fedsa-lora"`."""

    @property
    def shared(self) -> tuple[Factor, ...]:
        """B is each node's own."""
        return ("A",)


class LoRA:
    """The exact mean of the shared factors' changes."""

    def __init__(self, settings: LoRASettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> FactorTraining:
        """Which factors train, and the round's bounds."""
        settings = self._settings
        return FactorTraining(**settings.factors(server_round), **settings.common(server_round, 0, run_seed))

    def aggregate(
        self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule = MEAN
    ) -> ExactState:
        """The state plus the weighted mean of the factors' changes, or what the rule makes of them."""
        return after_rule(state, plan, updates, rule)
