# SPDX-License-Identifier: Apache-2.0
"""Server half of FedPepTAO (Che et al., arXiv 2310.15080): prompts before the keys and values of every layer train, and
those of some layers are shared.

- Which layers: in a round of its own each node says of each layer how alike its hidden states of different texts are;
  the mean decides, once (`fedcore.round.training.prompts`).
- What is added beyond the mean, as the authors' code has it: with x the shared prompts, d_i = x_before - x_i a node's
  change, T steps at rate e, and D the mean of the d_i,

      c_i += d_i / (T e) - c            a control variate for each node, c their mean over all nodes
      v = 0.9 v + 0.1 (D_before - D) + c - mean of c_i
      x = mean of x_i - rate v          the rate falls by 0.99 each round, to 1e-4 at the least

  from the second round on. v, c and c_i are the coordinator's own (`ExactState.tables`): nobody else needs them, so a
  node sends and fetches nothing more. All of it is elementwise, in float64 and in the order of the nodes' names, which
  IEEE 754 rounds the same on every machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedcore.methods.interface import MethodSettings, exact_mean, require_within
from fedcore.round.plan import Plan
from fedcore.round.training import PromptTraining
from fedcore.round.training.prompts import PROMPTS

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["FedPepTAO", "FedPepTAOSettings"]

_MOMENTUM = 0.9
_RATE_DECAY, _LEAST_RATE = 0.99, 1e-4
_LARGEST = 128.0
"""Of a number of the state."""


class FedPepTAOSettings(
    MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedpeptao"
):
    """`name = "fedpeptao"`."""

    num_virtual_tokens: int = 20
    """Before the keys and values of each layer."""
    shared_part: float = 0.5
    """Part of the layers whose prompts are shared, those with the highest scores; 1.0 for all, without a round for
    scores."""
    server_rate: float = 0.05
    """Of the coordinator's step beyond the mean; 0.0 for the mean alone."""
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        MethodSettings.__post_init__(self)
        require_within(self, num_virtual_tokens=4096, shared_part=1)
        if self.server_rate:
            require_within(self, server_rate=1)

    @property
    def virtual_tokens(self) -> int:
        """As many as each layer has."""
        return self.num_virtual_tokens

    @property
    def not_by_coordinate(self) -> str:
        """The mean is not all that becomes of an update."""
        return "the coordinator keeps a control variate of each node's own changes"

    @property
    def not_with_answers(self) -> str:
        """A cache begins without prompts."""
        return "prompts have no place in an answer's cache"

    def described(self) -> str:
        """For a person, in short."""
        return (
            f"{self.name}, {self.num_virtual_tokens} tokens, {self.shared_part:g} of the layers shared, server rate"
            f" {self.server_rate:g}, {self.steps} steps, {self.bits} bits"
        )


class FedPepTAO:
    """The mean of the shared prompts, and a step that takes drift out of it."""

    def __init__(self, settings: FedPepTAOSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> PromptTraining:
        """The round's stage, the coordinator's rate in it, and its bounds."""
        settings = self._settings
        first = 2 if settings.shared_part < 1 else 1
        decayed = max(settings.server_rate * _RATE_DECAY ** (server_round - first), _LEAST_RATE)
        return PromptTraining(
            num_virtual_tokens=settings.num_virtual_tokens,
            shared_part=settings.shared_part,
            stage="scores" if server_round < first else "prompts",
            server_rate=decayed if settings.server_rate and server_round >= first else 0.0,
            **settings.common(server_round, 0, run_seed),
        )

    def aggregate(self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate]) -> ExactState:
        """The state plus the weighted mean of the changes; of shared prompts, and a step beyond it."""
        updates, training = list(updates), plan.training
        assert isinstance(training, PromptTraining)
        after = exact_mean(state, plan, updates)
        return _stepped(state, after, plan, updates) if training.server_rate else after


def _stepped(state: ExactState, after: ExactState, plan: Plan, updates: list[WeightedUpdate]) -> ExactState:
    """The state after a round's mean with the coordinator's step, and tables for the next one."""
    import numpy as np

    from fedcore.numbers.accumulator import FRACTION_BITS

    training, tables = plan.training, dict(state.tables)
    assert isinstance(training, PromptTraining)
    zero = np.zeros(after.sums[PROMPTS].shape)
    changes = dict(sorted((update.header.node, _change(update, plan)) for update in updates))
    weights = {update.header.node: update.weight for update in updates}
    control, new, moved = tables.get("control", zero), {}, zero
    for node, change in changes.items():
        own = tables.get(f"control/{node}", zero)
        new[node] = own - control + change / (training.steps * training.learning_rate)
        moved = moved + (new[node] - own)
    tables |= {f"control/{node}": own for node, own in new.items()}
    known = sum(name.startswith("control/") for name in tables)
    tables["control"] = control = control + moved / known
    mean = np.ldexp((state.sums[PROMPTS] - after.sums[PROMPTS]).astype(np.float64), -FRACTION_BITS)
    before = tables.get("change")
    tables["change"] = mean
    if before is None:
        return replace(after, tables=tables)
    total, drift = sum(weights.values()), zero
    for node, own in new.items():
        drift = drift + own * (weights[node] / total)
    velocity = tables.get("velocity", zero) * _MOMENTUM + (before - mean) * (1 - _MOMENTUM) + control - drift
    tables["velocity"] = velocity
    unit = 2.0**FRACTION_BITS
    stepped = after.sums[PROMPTS] - np.rint(velocity * (training.server_rate * unit))
    sums = after.sums | {PROMPTS: np.clip(stepped, -_LARGEST * unit, _LARGEST * unit).astype(np.int64)}
    return replace(after, sums=sums, tables=tables)


def _change(update: WeightedUpdate, plan: Plan) -> Any:
    """What a participant's shared prompts were before, less what they are, as it counts: float64 (layers, numbers)."""
    import numpy as np

    from fedcore.model.update import IndexedUpdate
    from fedcore.numbers.accumulator import FRACTION_BITS

    part = IndexedUpdate(update, plan).record(PROMPTS)[0].part
    units = part.units(slice(0, part.shape[0]))
    units = units if update.clip is None else update.clip.of(units)
    return np.ldexp(-units.astype(np.float64), -FRACTION_BITS)
