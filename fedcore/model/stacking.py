# SPDX-License-Identifier: Apache-2.0
"""A round's factors side by side: the exact mean of products B_k A_k, as one product of stacked factors.

    sum over k of p_k alpha / r B_k A_k = up @ down,   up = alpha / r [p_1 B_1, p_2 B_2, ...] (m, s),   down = [A_1;
    A_2; ...] (s, n)

s is r times the number of participants, who are taken in the order of their names, so that the order in which updates
came changes nothing. Unlike a mean, a stack grows with the participants: at the coordinator, on the wire and in the
merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import RunError
from fedcore.model.merge import finest_exponents
from fedcore.model.state import MAX_STACKED, ExactState
from fedcore.model.update import WeightedUpdate, add_updates
from fedcore.numbers.accumulator import FRACTION_BITS, RunningSum, mean_fixed
from fedcore.numbers.records import MAX_NUMBERS
from fedcore.round.plan import Plan
from fedcore.round.training import DOWN, UP, FactorTraining
from fedcore.weights.initial import initial_factor

__all__ = ["Offset", "after_stacking", "first_factors"]

Offset = Callable[[str, NDArray[np.int64], str], NDArray[np.int64]]


def after_stacking(state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate], offset: Offset) -> ExactState:
    """The next state: entries plus the exact weighted means of their changes, and the participants' factors stacked.

    Args:
        state: As the round began, without a stack.
        plan: The round.
        updates: Of the round; read twice, a few records in memory at a time.
        offset: From the name of an entry A, the mean of its changes and a participant's name, what is added to its
            change of it.

    Raises:
        RunError: The stack would be larger than a published state can be.
    """
    training, schema = plan.training, plan.model_schema
    assert isinstance(training, FactorTraining)
    ordered = sorted(updates, key=lambda update: update.header.node)
    rows = len(ordered) * training.rank
    widest = max((max(layer.rows, layer.columns) for layer in schema.layers), default=0)
    if rows > MAX_STACKED or rows * widest > MAX_NUMBERS:
        raise RunError(
            f"{len(ordered)} participants' factors are too many to stack", remedy="lower method.rank or round.cohort"
        )
    total = RunningSum(training.update_shapes(schema))
    add_updates(ordered, plan, total)
    means = dict(total.means())
    stack = {f"{layer.name}{UP}": np.empty((layer.rows, rows), np.int64) for layer in schema.layers}
    stack |= {f"{layer.name}{DOWN}": np.empty((rows, layer.columns), np.int64) for layer in schema.layers}
    for number, update in enumerate(ordered):
        place = slice(number * training.rank, (number + 1) * training.rank)
        changes = _changes(update, plan)
        for name in (layer.name for layer in schema.layers):
            first = offset(f"{name}/A", means[f"{name}/A"], update.header.node)
            stack[f"{name}{DOWN}"][place] = changes[f"{name}/A"] + first
            part = mean_fixed(changes[f"{name}/B"] * np.int64(update.weight), total.examples)
            stack[f"{name}{UP}"][:, place] = np.rint(part * (training.alpha / training.rank)).astype(np.int64)
    sums = {name: value + means[name] if name in means else value for name, value in state.sums.items()} | stack
    finest = {name: finest_exponents(value) for name, value in stack.items() if name.endswith(DOWN)}
    return replace(state, version=state.version + 1, sums=sums, exponents=state.exponents | finest, velocity={})


def first_factors(seed_of: Callable[[str], int]) -> Offset:
    """The values that entries A begin with, in units of 2**-32: what a change is a change of.

    Args:
        seed_of: Of a node, in the generation (`fedcore.round.training.FactorTraining.node_seed`).
    """

    def first(name: str, mean: NDArray[np.int64], node: str) -> NDArray[np.int64]:
        rows, columns = mean.shape
        values = initial_factor(name, rows, columns, seed_of(node))
        return np.rint(np.ldexp(values.astype(np.float64), FRACTION_BITS)).astype(np.int64)

    return first


def _changes(update: WeightedUpdate, plan: Plan) -> Mapping[str, NDArray[np.int64]]:
    """What an update says, checked and clipped: exact, in units of 2**-32."""
    one = RunningSum(plan.training.update_shapes(plan.model_schema))
    add_updates([WeightedUpdate(update.path, update.header, 1, update.clip)], plan, one)
    return dict(one.means())
