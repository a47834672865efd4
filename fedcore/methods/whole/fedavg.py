# SPDX-License-Identifier: Apache-2.0
"""Federated averaging of full fine-tuning: every number of every target layer goes up as its change, and down as the
mean of the changes.

Source: McMahan et al., arXiv 1602.05629, algorithm 1, with changes in place of weights (GradualDiff-Fed sends the
same).

How a change travels is the `codec`. With `top-k` only the largest numbers of each layer do. What does not is lost: a
client that keeps the rest for its next round (error feedback) has to be there in the next round, with 4 bytes a number
on its disk; here nodes come and go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from fedcore.errors import ConfigError
from fedcore.fields.types import Bits
from fedcore.methods.interface import SteppedSettings, after_rule, require_within
from fedcore.numbers.rules import MEAN, Rule
from fedcore.round.plan import Plan
from fedcore.round.training import DenseCodec, DenseTraining

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["FedAvg", "FedAvgSettings"]

# What each name of a job is in a plan; None for the job's `bits`.
_CODECS: dict[str, tuple[DenseCodec, Bits | None]] = {
    "": ("integers", None),
    "int4": ("integers", 4),
    "int8": ("integers", 8),
    "int16": ("integers", 16),
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "top-k": ("top-k", None),
}


class FedAvgSettings(
    SteppedSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedavg"
):
    """`name = "fedavg"`."""

    codec: Literal["", "int4", "int8", "int16", "float32", "bfloat16", "top-k"] = ""
    """Of changes on the wire; empty for integers of `bits` bits, which `top-k` are as well."""
    density: float = 0.01
    """Share of a layer's numbers that travel with `top-k`."""

    def __post_init__(self) -> None:
        SteppedSettings.__post_init__(self)
        require_within(self, density=1.0)
        said = _CODECS[self.codec][1]
        # 8 is also what a job has that does not say it.
        if said is not None and self.bits not in (said, 8):
            raise ConfigError(
                f"codec {self.codec!r} and {self.bits} bits", place="method.codec", remedy="leave one of them out"
            )

    @property
    def not_by_coordinate(self) -> str:
        """Whole changes are, but for the largest alone."""
        return (
            'codec = "top-k" sends few of a layer\'s numbers: most are zero where one is not'
            if self.codec == "top-k"
            else ""
        )

    @property
    def not_buffered(self) -> str:
        """Whole changes can be added to any version."""
        return ""

    @property
    def sums_alone(self) -> bool:
        """Changes are added up, however they are written."""
        return True

    def described(self) -> str:
        """For a person, in short."""
        codec = self.codec or f"int{self.bits}"
        return f"{self.name}, {self.steps} steps, {codec}" + (f" of {self.density:.3g}" if codec == "top-k" else "")


class FedAvg:
    """The exact mean of whole changes."""

    def __init__(self, settings: FedAvgSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> DenseTraining:
        """The round's bounds."""
        settings = self._settings
        codec, bits = _CODECS[settings.codec]
        common = settings.common(server_round, 0, run_seed) | ({} if bits is None else {"bits": bits})
        return DenseTraining(codec=codec, density=settings.density if codec == "top-k" else 1.0, **common)

    def aggregate(
        self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule = MEAN
    ) -> ExactState:
        """The state plus the weighted mean of the changes, or what the rule makes of them."""
        settings = self._settings
        step, momentum = settings.server_step, settings.server_momentum
        return after_rule(state, plan, updates, rule, step=step, momentum=momentum)
