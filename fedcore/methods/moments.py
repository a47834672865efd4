# SPDX-License-Identifier: Apache-2.0
"""Second moments as a round of `fedcore.methods.fed3r` brings them: added up, masked or not, and in their own units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fedcore.numbers.rules import Mean, Rule
from fedcore.round.plan import Plan
from fedcore.round.training import PrivateTraining
from fedcore.round.training.head import FEATURE_UNIT, MOMENTS, hidden_units

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcore.model.update import WeightedUpdate
    from fedcore.numbers.ridge import Moments

__all__ = ["moments_of", "summed"]


def summed(plan: Plan, updates: Iterable[WeightedUpdate], rule: Rule) -> tuple[NDArray[np.int64], int, float]:
    """The mean of what nodes say, in units of 2**-32; how many rows it is of; the standard deviation of its noise.

    Args:
        plan: The round's, with a `HeadTraining`.
        updates: In any order, or the sum of masked ones, of which nothing else is known.
        rule: A mean, with noise where it hides nodes.
    """
    from fedcore.model.lanes import Unmasked
    from fedcore.model.update import add_updates
    from fedcore.numbers.accumulator import RunningSum

    privacy = plan.training.privacy
    if isinstance(updates, Unmasked):
        noise = updates.noise or _noise_of(privacy, updates.nodes, updates.weight)
        return dict(updates.means())[MOMENTS], updates.weight, noise
    total = RunningSum(plan.training.update_shapes(plan.model_schema))
    assert isinstance(rule, Mean), "sums over rows are no votes: a job with another rule is refused"
    weights = list[int]()
    add_updates(_counted(updates, weights), plan, total)
    return dict(rule.of(total).means())[MOMENTS], total.examples, _noise_of(privacy, len(weights), total.examples)


def _counted(updates: Iterable[WeightedUpdate], weights: list[int]) -> Iterator[WeightedUpdate]:
    """Updates as they are, and what each weighs."""
    for update in updates:
        weights.append(update.weight)
        yield update


def _noise_of(privacy: PrivateTraining | None, nodes: int, weight: int) -> float:
    """The standard deviation of the noise on a number of the mean; 0 for none. A node that hides its rows adds it to
    its sum, so to its mean as much as its rows are many; one on a sum of nodes is there once."""
    if privacy is None:
        return 0.0
    times = nodes if privacy.level == "example" else 1
    return privacy.noise_multiplier * privacy.clip * math.sqrt(times) / max(1, weight)


def moments_of(
    packed: NDArray[np.float64], features: int, rows: int, noise: float, *, hidden: bool
) -> tuple[Moments, float]:
    """What travelled, in the features' own units, and its noise. Sums that were scaled down weigh less: the mean of
    ones says how much.

    Args:
        packed: The mean.
        features: How many there are.
        rows: That it is of.
        noise: Standard deviation of each number's noise.
        hidden: Whether rows or nodes are.
    """
    import numpy as np

    from fedcore.numbers.ridge import Moments
    from fedcore.numbers.symmetric import unpacked

    whole = unpacked(packed)
    units = np.ones(len(whole))
    units[:features] = FEATURE_UNIT
    if hidden:
        units /= hidden_units(features, len(whole) - features - 1)
    whole, noise = whole * np.outer(units, units), noise * float(units[0]) ** 2
    ones = float(whole[features, features])
    return (
        (Moments(whole / ones, features, rows), noise / ones) if ones > 0 else (Moments(whole, features, rows), noise)
    )
