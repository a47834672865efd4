# SPDX-License-Identifier: Apache-2.0
"""Server half of adapters of the package `peft` (FederatedScope-LLM, arXiv 2309.00363, has the idea): nodes train an
adapter's tensors whole, and each tensor is averaged by itself.

Where a layer is linear in what trains ((IA)3), or what trains is an input (prompts, prefixes), the mean of the tensors
is the mean of the models; where tensors are multiplied with each other (VeRA, DoRA, P-tuning) it is not, as
with FedIT."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from fedcore.config.adapters import IA3, AnyAdapter
from fedcore.methods.interface import MethodSettings, after_rule
from fedcore.numbers.rules import MEAN, Rule
from fedcore.round.plan import Plan
from fedcore.round.training import AdapterTraining

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["Peft", "PeftSettings"]

_ADAPTERS: Final = float(0)
"""Stands for a rate that was left out: this object, and no other zero, which is refused."""


class PeftSettings(
    MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedavg-peft"
):
    """`name = "fedavg-peft"`."""

    peft: AnyAdapter = IA3()
    """Which adapter, with its keys."""
    learning_rate: float = _ADAPTERS
    """Left out: the adapter's (`fedcore.config.adapters.Adapter.learning_rate`).

    Example:
        >>> PeftSettings().learning_rate, PeftSettings(learning_rate=1e-2).learning_rate
        (0.03, 0.01)
    """

    def __post_init__(self) -> None:
        if self.learning_rate is _ADAPTERS:
            msgspec.structs.force_setattr(self, "learning_rate", self.peft.learning_rate)
        MethodSettings.__post_init__(self)

    @property
    def adapter(self) -> AnyAdapter:
        """Which."""
        return self.peft

    @property
    def not_by_coordinate(self) -> str:
        """Tensor by tensor, as their means are: all participants' changes begin with the same tensors."""
        return ""

    @property
    def not_with_answers(self) -> str:
        """As the adapter says."""
        return self.peft.not_with_answers

    def described(self) -> str:
        """For a person, in short."""
        keys = (f"{key} {value}" for key, value in self.peft.settings.items() if key != "use_dora" and value)
        return ", ".join([f"{self.name} ({self.peft.name})", *keys, f"{self.steps} steps", f"{self.bits} bits"])


class Peft:
    """The exact mean of the tensors' changes."""

    def __init__(self, settings: PeftSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> AdapterTraining:
        """The adapter, and the round's bounds."""
        return AdapterTraining(peft=self._settings.peft, **self._settings.common(server_round, 0, run_seed))

    def aggregate(
        self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule = MEAN
    ) -> ExactState:
        """The state plus the weighted mean of the tensors' changes, or what the rule makes of them."""
        return after_rule(state, plan, updates, rule)
