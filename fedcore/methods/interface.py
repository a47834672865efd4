# SPDX-License-Identifier: Apache-2.0
"""What a federated method is, seen from the coordinator: settings, and a server half of pure functions over explicit
state.

A method has two halves. The server half (here and in `fedcore.methods`) decides what a round's plan says and how
updates become the next state; the client half (`edge_client.worker.methods`) trains and writes an update. Between them
lie only files and the plan.

Settings are read by whoever looks at a job: NumPy is loaded by the sums of a round, not by the modules of methods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

import msgspec

from fedcore.config.adapters import AnyAdapter
from fedcore.errors import ConfigError
from fedcore.fields.types import Bits
from fedcore.numbers.rules import MEAN, Mean, Rule
from fedcore.round.plan import Plan
from fedcore.round.training import AnyTraining

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = [
    "MethodSettings",
    "ServerHalf",
    "SteppedSettings",
    "after_rule",
    "exact_mean",
    "require_within",
]

M = TypeVar("M", bound="MethodSettings")

_LAST_RATE: Final = 1 / 3
"""Of a run's last round, of the first's."""


class MethodSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name"):
    """`[method]`: what all methods have. The key `name` chooses the method, and with it the other keys there are."""

    interval_steps: int = 10
    """Optimiser steps in an interval, J. A worker that is killed goes on from the last finished one."""
    steps: int = 40
    """Optimiser steps in a round, T: a multiple of `interval_steps`."""
    batch_size: int = 16
    """Examples in an optimiser step."""
    learning_rate: float = 1e-3
    tensor_learning_rate: float = 2e-3
    """For tensors trained whole, such as the task head."""
    learning_rate_decay: float | None = None
    """Factor on both learning rates from each round to the next. Left out, what makes those of the run's last round a
    third of those of its first (`settled`); without a run, 1."""
    bits: Bits = 8
    """Bits of an update's numbers on the wire: 4, 8 or 16."""
    published_bits: int = 16
    """Bits of a published state's numbers, 8 to 16: what the coordinator knows exactly is rounded to them once, so
    fewer make what nodes fetch smaller, and nothing adds up."""
    share: Literal["examples", "uniform"] = "examples"
    """A participant's part in the average."""

    def __post_init__(self) -> None:
        require_within(
            self,
            interval_steps=2**31 - 1,
            steps=2**31 - 1,
            batch_size=2**31 - 1,
            learning_rate=1e6,
            tensor_learning_rate=1e6,
        )
        if self.learning_rate_decay is not None:
            require_within(self, learning_rate_decay=1)
        if not 8 <= self.published_bits <= 16:
            raise ConfigError(
                f"published_bits is {self.published_bits}, outside 8 to 16", place="method.published_bits"
            )
        if self.steps % self.interval_steps:
            raise ConfigError(
                f"{self.steps} steps are not a whole number of intervals of {self.interval_steps}",
                place="method.steps",
                remedy=f"use {self.steps // self.interval_steps * self.interval_steps or self.interval_steps}",
            )

    @property
    def name(self) -> str:
        """The method's."""
        return str(self.__struct_config__.tag)

    def settled(self: M, rounds: int) -> M:
        """Itself, with what a decay that was left out is in a run.

        Args:
            rounds: Of the method in it.

        Example:
            >>> from fedcore.methods.fedkrso import FedKRSOSettings
            >>> [round(FedKRSOSettings().settled(rounds).learning_rate_decay, 3) for rounds in (1, 2, 6, 100)]
            [1.0, 0.333, 0.803, 0.989]
            >>> FedKRSOSettings(learning_rate_decay=1.0).settled(6).learning_rate_decay
            1.0
        """
        if self.learning_rate_decay is not None:
            return self
        decay = _LAST_RATE ** (1 / (rounds - 1)) if rounds > 1 else 1.0
        return msgspec.structs.replace(self, learning_rate_decay=decay)

    @property
    def not_with_noise(self) -> str:
        """Why a sum of its updates cannot hide one of them behind noise (`[privacy.node]`); empty where it can, and
        then the server half's `aggregate` takes the mean that has noise."""
        return self.not_by_coordinate

    @property
    def not_by_example(self) -> str:
        """Why gradients of single examples cannot be cut and hidden on the node (`[privacy.example]`); empty where they
        can, and then its client half takes `fedcore.round.training.Training.privacy`."""
        return "its gradients are not kept by example"

    @property
    def not_averaged(self) -> str:
        """Why states of several rounds have no mean that would be a state (`round.average_last`); empty where they
        have."""
        return ""

    @property
    def told_once(self) -> bool:
        """Whether a round tells of each example once, with all of its node's; False where it is drawn into batches."""
        return False

    @property
    def adapter(self) -> AnyAdapter | None:
        """The adapter that it trains, as `fedcore.round.training.Training.adapter`."""
        return None

    @property
    def virtual_tokens(self) -> int:
        """Tokens before each text, as `fedcore.round.training.Training.virtual_tokens`."""
        return 0 if self.adapter is None else self.adapter.tokens

    @property
    def not_with_answers(self) -> str:
        """Why a model in training writes no answers for metrics that compare texts; empty where it does."""
        return ""

    @property
    def needs_head(self) -> str:
        """Why only tasks with a new head can be learned by it; empty where all can."""
        return ""

    @property
    def work_memory_bytes(self) -> int:
        """What a worker of the coordinator may take for a round's work (`Training.work`); 0 where there is none."""
        return 0

    @property
    def merges_every(self) -> int:
        """Rounds between merges of what was learned into the base; 0 for never."""
        return 0

    @property
    def not_by_coordinate(self) -> str:
        """Why no rule but the mean can make one of participants' updates, number by number; empty where every rule can,
        and then the server half's `aggregate` takes one."""
        return "it does not say that its updates can be compared number by number"

    @property
    def in_turn(self) -> bool:
        """Whether nodes train one after the other, each from what the last one left; False where those of a round train
        side by side."""
        return False

    @property
    def not_buffered(self) -> str:
        """Why changes that began from different versions cannot be added to the present state (`round.kind =
        "buffered"`); empty where they can: all versions have the same entries, whose numbers mean the same."""
        return "it does not say that changes to different versions of the state can be added"

    @property
    def sums_alone(self) -> bool:
        """Whether the sum of a round's updates is all that the server half takes: then it also takes a sum of which
        nobody knows the parts (`fedcore.model.lanes.Unmasked`, in place of the updates)."""
        return False

    def described(self) -> str:
        """For a person, in short."""
        return f"{self.name}, {self.steps} steps, {self.bits} bits"

    def common(self, server_round: int, generation: int, run_seed: int) -> dict[str, Any]:
        """What every plan says of them, as `fedcore.round.training.Training` has it."""
        decayed = (self.learning_rate_decay or 1.0) ** (server_round - 1)
        return {
            "generation": generation,
            "intervals": self.steps // self.interval_steps,
            "interval_steps": self.interval_steps,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate * decayed,
            "tensor_learning_rate": self.tensor_learning_rate * decayed,
            "bits": self.bits,
            "published_bits": self.published_bits,
            "share": self.share,
            "run_seed": run_seed,
        }


class SteppedSettings(MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name"):
    """Of methods whose server may take more or less than the mean (Reddi et al., arXiv 2003.00295, with SGD and
    momentum)."""

    server_step: float = 1.0
    """Factor on what the coordinator adds to the state, up to 4."""
    server_momentum: float = 0.0
    """Part of what it added last that it adds again, up to 0.95."""

    def __post_init__(self) -> None:
        MethodSettings.__post_init__(self)
        require_within(self, server_step=4)
        if not 0 <= self.server_momentum <= 0.95:
            raise ConfigError(
                f"server_momentum is {self.server_momentum}, outside 0 to 0.95", place="method.server_momentum"
            )


def require_within(settings: MethodSettings, **most: float) -> None:
    """Check that numbers of the settings are positive and no more than a plan can say.

    Raises:
        ConfigError: One is not.
    """
    for key, limit in most.items():
        value = getattr(settings, key)
        if value <= 0:
            raise ConfigError(f"{key} is {value}, it must be positive", place=f"method.{key}")
        if value > limit:
            raise ConfigError(f"{key} is {value}, more than {limit:,}", place=f"method.{key}")


class ServerHalf(Protocol):
    """A method at the coordinator. Pure: state goes in, state comes out; files are read, never kept open."""

    def training(self, server_round: int, run_seed: int) -> AnyTraining:
        """What the plan of a round says; MUST depend on nothing but the settings and the arguments."""
        ...

    def aggregate(
        self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule = MEAN
    ) -> ExactState:
        """The next state, by the weights and clips given. MUST NOT depend on the order of the updates.

        `rule` says what becomes of the numbers that updates say of one coordinate. A method that means nothing but the
        mean leaves it out: jobs with another rule are refused (`MethodSettings.not_by_coordinate`), and the mean is
        never passed.
        """
        ...


def exact_mean(
    state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], *, step: float = 1.0, momentum: float = 0.0
) -> ExactState:
    """The state plus the exact weighted mean of the updates; what an update does not have of an entry counts as zero,
    or not at all.

    Args:
        state: Before the round.
        plan: The round's.
        updates: In any order.
        step: Factor on what is added to what is learned; what is known about it (`averaged_by_column`) is not
            stretched.
        momentum: Part of what was added last that is added again.
    """
    return after_rule(state, plan, updates, MEAN, step=step, momentum=momentum)


def after_rule(
    state: ExactState,
    plan: Plan,
    updates: Iterable[WeightedUpdate],
    rule: Rule,
    *,
    step: float = 1.0,
    momentum: float = 0.0,
) -> ExactState:
    """The state plus what a rule makes of the updates: of the mean, `exact_mean`; of every other
    `fedcore.model.combine.Combined`.

    Args:
        state: As `exact_mean`.
        plan: As `exact_mean`.
        updates: As `exact_mean`.
        rule: Of the job.
        step: As `exact_mean`.
        momentum: As `exact_mean`.
    """
    from fedcore.model.combine import Combined
    from fedcore.model.lanes import Unmasked
    from fedcore.model.update import HandedOut, add_updates
    from fedcore.numbers.accumulator import RunningSum

    training, schema = plan.training, plan.model_schema
    known = training.averaged_by_column(schema)
    if isinstance(updates, Unmasked):
        return state.after(updates, step=step, momentum=momentum, plain=known)
    if not isinstance(rule, Mean):
        return state.after(Combined(list(updates), plan, rule), step=step, momentum=momentum, plain=known)
    total = RunningSum(training.shapes(schema), known)
    if isinstance(updates, HandedOut):
        updates.adder(updates, plan, total)
    else:
        add_updates(updates, plan, total)
    return state.after(rule.of(total), step=step, momentum=momentum, plain=known)
