# SPDX-License-Identifier: Apache-2.0
"""Fed3R: a task head from sums, in one round, whatever labels each node has; and the same before another method's
rounds, as the head start of linear probing then fine-tuning.

Every node sends the mean second moments of what goes into its head and of its targets, once over all of its rows; the
exact mean of these, weighted by examples, is that of all rows at one place. The coordinator solves a ridge regression
with it (`fedcore.numbers.ridge`), and publishes the head as every state is: as a change of its first values, rounded
once. The sums themselves it publishes to nobody.

Sources: Fanì et al., arXiv 2402.00353 (Fed3R); Kumar et al., arXiv 2202.10054 (why a head comes before fine-tuning)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from fedcore.config.sections import HeadSection, TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import ConfigError
from fedcore.methods.interface import MethodSettings, ServerHalf
from fedcore.methods.moments import moments_of, summed
from fedcore.numbers.rules import MEAN, Mean, Rule
from fedcore.round.plan import Plan
from fedcore.round.training import AnyTraining, HeadTraining
from fedcore.round.training.head import linear_head, require_linear_head, target_scale
from fedcore.weights.schema import ModelSchema

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["Fed3R", "Fed3RSettings", "HeadStart", "require_head_start", "require_solvable", "settled_head"]

_INTERVAL_STEPS: Final = 64
"""Batches after which a head start's sums go to a node's disk: they are larger than most methods' intervals."""
_LARGEST: Final = 2.0**20
_MOST_NUMBERS: Final = 4_000_000
"""Of a node's sums, 16 MB: 2,800 features and labels. Beyond it they are larger than what most methods send in all."""
_MANY_LABELS: Final = 10
"""Of which no node has mostly one: then rates for a random head are right after a good one too (docs/methods.md)."""
_NO_HEAD: Final = 'write "random", or leave it out'


class Fed3RSettings(
    MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fed3r"
):
    """`name = "fed3r"`: each round makes the head anew from its participants' rows, so one round is enough. Steps and
    learning rates mean nothing."""

    codec: Literal["float32", "integers"] = "float32"
    """Of moments on the wire; `integers` are of `bits` bits."""

    @property
    def not_by_coordinate(self) -> str:
        """Sums over rows are no votes."""
        return "it adds sums up: what each node says of a number is right for its own rows alone"

    @property
    def not_with_noise(self) -> str:
        """A sum of sums is one."""
        return ""

    @property
    def not_by_example(self) -> str:
        """What each row adds to the sums is cut and hidden, gradients or not."""
        return ""

    @property
    def told_once(self) -> bool:
        """In one sum over all rows."""
        return True

    @property
    def sums_alone(self) -> bool:
        """It takes nothing else."""
        return True

    def described(self) -> str:
        """For a person, in short."""
        return f"{self.name}, {self.codec if self.codec == 'float32' else f'int{self.bits}'}"


class Fed3R:
    """The head that a round's sums lead to."""

    def __init__(self, settings: Fed3RSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> HeadTraining:
        """One pass over the rows."""
        common = self._settings.common(server_round, 0, run_seed)
        # Sums of all rows, whatever a mean of changes would take.
        return HeadTraining(**{**common, "share": "examples", "codec": self._settings.codec})

    def aggregate(
        self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule = MEAN
    ) -> ExactState:
        """The state with the head in place of the one that it had."""
        return _after_sums(state, plan, updates, rule)


class HeadStart:
    """A round for the head, and then another method's rounds, which know of none but theirs; and again, where the job
    says so.

    Args:
        half: Of the method.
        head: `[head]`, with `ridge`.
    """

    def __init__(self, half: ServerHalf, head: HeadSection) -> None:
        self._half, self._head, self._rates = half, head, head.rates or 1.0

    def training(self, server_round: int, run_seed: int) -> AnyTraining:
        """The head's in its rounds, else the method's own. One for a head is of the generation of the method's round
        before it: whatever is merged, the round after it merges."""
        own = self._half.training(max(1, server_round - self._head.heads_until(server_round)), run_seed)
        then = own.at_rates(self._rates)
        if not self._head.is_head(server_round):
            return then
        return HeadTraining(
            generation=then.generation,
            intervals=1,
            interval_steps=_INTERVAL_STEPS,
            batch_size=then.batch_size,
            learning_rate=then.learning_rate,
            tensor_learning_rate=then.tensor_learning_rate,
            bits=16,
            share="examples",
            run_seed=run_seed,
            published_bits=then.published_bits,
            then=then,
        )

    def aggregate(
        self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule = MEAN
    ) -> ExactState:
        """As the plan's training says."""
        if isinstance(plan.training, HeadTraining):
            return _after_sums(state, plan, updates)
        # A mean with noise is one, and must not be lost.
        chosen = () if type(rule) is Mean else (rule,)
        return self._half.aggregate(state, plan, updates, *chosen)


def _after_sums(state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule = MEAN) -> ExactState:
    """The state with the head that the sums of a round lead to; all else is as it was.

    Args:
        state: Before the round.
        plan: The round's, with a `HeadTraining`.
        updates: In any order.
        rule: A mean, with noise where it hides nodes.
    """
    import numpy as np

    from fedcore.numbers.accumulator import FRACTION_BITS
    from fedcore.numbers.ridge import ridge_head
    from fedcore.weights.initial import initial_tensor

    training, schema = plan.training, plan.model_schema
    packed, rows, noise = summed(plan, updates, rule)
    if not rows:
        # Of masked updates, of which too few are left: the round comes to nothing.
        return replace(state, version=state.version + 1)
    head, aims = require_linear_head(schema), task_of(plan.task).aims
    assert aims != "", "a job whose task has none is refused"
    means, hidden = np.ldexp(packed.astype(np.float64), -FRACTION_BITS), training.privacy is not None
    moments, noise = moments_of(means, head.weight.shape[1], rows, noise, hidden=hidden)
    middle, unit = target_scale(plan.task)
    fitted = ridge_head(moments, aims, bias=head.bias is not None, middle=middle / unit, noise=noise)
    # Scores are in units of their own; classes have none.
    weight, bias = fitted.weight * unit, fitted.bias * unit
    solved = {head.weight: weight} | ({} if head.bias is None else {head.bias: bias})
    sums = dict(state.sums)
    for spec, value in solved.items():
        start = initial_tensor(spec.name, spec.shape, training.run_seed, bias=spec.start).astype(np.float64)
        sums[spec.name] = _fixed(value.reshape(spec.matrix) - start.reshape(spec.matrix))
    solved_names = {spec.name for spec in solved}
    velocity = {name: value for name, value in state.velocity.items() if name not in solved_names}
    return replace(state, version=state.version + 1, sums=sums, exponents=dict(state.exponents), velocity=velocity)


def _fixed(value: NDArray[np.float64]) -> NDArray[np.int64]:
    """In units of 2**-32, and no larger than a state's numbers may be: only sums that no rows have lead there."""
    import numpy as np

    from fedcore.numbers.accumulator import FRACTION_BITS

    return np.asarray(np.rint(np.ldexp(np.clip(value, -_LARGEST, _LARGEST), FRACTION_BITS)), np.int64)


def require_head_start(head: HeadSection, task: TaskSection, training: AnyTraining, rule: Rule, rule_name: str) -> None:
    """Check what a job says of its head's start, as far as the job alone says it.

    Args:
        head: `[head]`.
        task: `[task]`.
        training: Of the method's first round.
        rule: Of `[safety]`.
        rule_name: As the job calls it.

    Raises:
        ConfigError: A ridge start means nothing in it.
    """
    if head.start != "ridge" and not isinstance(training, HeadTraining):
        return
    place = "head.start" if head.start == "ridge" else "method.name"
    if not task_of(task).aims:
        raise ConfigError(f"{task.kind} has no new head that sums lead to", place=place, remedy=_NO_HEAD)
    if head.start != "ridge":
        return
    if isinstance(training, HeadTraining):
        raise ConfigError("fed3r is a head start already", place=place, remedy="leave it out")
    if training.one_pass:
        words = f"{training.method!r} trains the head at the coordinator"
        raise ConfigError(words, place=place, remedy=_NO_HEAD)
    if not training.shares_model:
        raise ConfigError(f"with {training.method!r} every node keeps a head of its own", place=place, remedy=_NO_HEAD)
    if not isinstance(rule, Mean):
        raise ConfigError(
            f"{rule_name!r} means nothing for sums over rows",
            place="safety.rule",
            remedy='use "mean", or a random head',
        )


def require_solvable(training: AnyTraining, schema: ModelSchema) -> None:
    """Check that a model has a head that sums lead to, where a run is to begin with it.

    Args:
        training: Of the run's first round.
        schema: The model's.

    Raises:
        ConfigError: It has not.
    """
    if isinstance(training, HeadTraining):
        head = require_linear_head(schema)
        if head.weight not in training.shared_tensors(schema):
            raise ConfigError("this method does not share its head", place="head.start", remedy=_NO_HEAD)


def settled_head(
    head: HeadSection, task: TaskSection, training: AnyTraining, rule: Rule, schema: ModelSchema, rounds: int
) -> HeadSection:
    """What `auto` means for a run: `ridge` where it means something, has its room, and leaves a round to the method.
    And the rates that follow it.

    Args:
        head: `[head]`; other starts stay, and so do rates.
        task: `[task]`, with its labels as a list.
        training: Of the method's first round.
        rule: Of `[safety]`.
        schema: The model's.
        rounds: Of the run.

    Example:
        >>> from fedcore.methods.whole.fedavg import FedAvg, FedAvgSettings
        >>> from fedcore.weights.schema import TensorSpec
        >>> task = TaskSection(kind="text-classification", labels=("a", "b"))
        >>> training = FedAvg(FedAvgSettings()).training(1, 0)
        >>> one = ModelSchema((), (TensorSpec("score.weight", (2, 8), in_checkpoint=False),))
        >>> none = ModelSchema((), ())
        >>> [settled_head(HeadSection(), task, training, MEAN, schema, 6).start for schema in (one, none)]
        ['ridge', 'random']

    Raises:
        ConfigError: A new head would begin at random, and the method never trains it.
    """
    settled = _settled(head, task, training, rule, schema, rounds)
    untrained = training.learns.leaves_tensors and any(not tensor.in_checkpoint for tensor in schema.tensors)
    if untrained and settled.start == "random":
        words = f"{training.learns.method} trains no head, and a random one is of no use"
        raise ConfigError(words, place="head.start", remedy='write "ridge", and give the run two rounds or more')
    return settled


def _settled(
    head: HeadSection, task: TaskSection, training: AnyTraining, rule: Rule, schema: ModelSchema, rounds: int
) -> HeadSection:
    rates = (1.0 if len(task.labels) >= _MANY_LABELS else 0.1) if head.rates is None else head.rates
    ridge = HeadSection(start="ridge", rates=rates, again=head.again)
    random = HeadSection(start="random", rates=head.rates, again=0)
    if head.start != "auto":
        return ridge if head.start == "ridge" else random
    found = linear_head(schema)
    if isinstance(found, str) or found.weight not in training.shared_tensors(schema) or rounds < 2:
        return random
    try:
        require_head_start(ridge, task, training, rule, "")
    except ConfigError:
        return random
    side = sum(found.weight.shape) + 1
    return ridge if side * (side + 1) // 2 <= _MOST_NUMBERS else random
