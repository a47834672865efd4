# SPDX-License-Identifier: Apache-2.0
"""What one participant may do to a round: a bound on its update's norm, and a limit on its share of the mean.

Pure functions of what the ledger keeps. A clip to the job's bound is chosen once, when the update arrives, and kept
with it; weights, and clips to the median of norms, follow from the set of accepted updates and of rounds before alone.
So the published state depends on no order and no restart.

With every update's norm at most B, a participant of weight w in a round of total weight W moves the round's mean by
w / W * |u - m|, where m is the mean of the others: by at most 2 B w / W. The share limit bounds w / W: a liar reaches
`max_share_ratio` times what an ordinary participant has, whatever it claims. Majorities that lie are beyond what a mean
can stand."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedcore.config.safety import SafetySection
from fedcore.errors import UpdateRefused
from fedcore.model.update import CheckedUpdate, check_update
from fedcore.numbers.accumulator import FRACTION_BITS, MAX_EXAMPLES, clip_within, norm_of
from fedcore.numbers.clip import Clip
from fedcore.round.header import UpdateHeader
from fedcore.round.masked import lanes_bytes, require_masked
from fedcore.round.plan import Plan

__all__ = [
    "Admitted",
    "Outlier",
    "Shares",
    "admit",
    "clip_for",
    "clips_beside",
    "largest_update",
    "outliers",
    "round_shares",
    "share_ratio",
]

_UPDATE_SLACK_BYTES = 1_000_000
_LEAST_RATIO, _LARGEST_RATIO = 3.0, 10.0


@dataclass(frozen=True)
class Admitted:
    """An update that counts.

    Attributes:
        header: What it says about itself.
        norm: Of all its numbers, as it came; None of a masked update.
        clip: Scales it down in the sum; None where it counts as it is.
    """

    header: UpdateHeader
    norm: float | None
    clip: Clip | None


def largest_update(plan: Plan) -> int:
    """The most bytes that an update may have."""
    if plan.secure is not None:
        return lanes_bytes(plan) + _UPDATE_SLACK_BYTES
    numbers = sum(rows * columns for rows, columns in plan.training.update_shapes(plan.model_schema).values())
    return 2 * numbers + _UPDATE_SLACK_BYTES


def admit(path: Path, plan: Plan, run: str, node: str, safety: SafetySection) -> Admitted:
    """Check an update whole, before it is kept: every number against the plan, and its norm against the bound; of a
    masked one, whose it is, and its size.

    Args:
        path: Its file.
        plan: The round's.
        run: Name of the run.
        node: Whose it is.
        safety: The bounds.

    Raises:
        UpdateRefused: It is not an update for this round, or beyond a bound.
    """
    if plan.secure is not None:
        return Admitted(require_masked(path, plan, run, node), None, None)
    update = check_update(path, plan, run, node)
    return Admitted(update.header, norm_of(update.squared), clip_for(update, safety))


def clip_for(update: CheckedUpdate, safety: SafetySection) -> Clip | None:
    """How an arriving update is scaled down; None when its norm is within the bound, or there is no bound.

    Raises:
        UpdateRefused: The norm is beyond the bound, and the policy is to refuse.
    """
    if safety.norm_bound == 0:
        return None
    clip = clip_within(update.squared, safety.norm_bound)
    if clip is not None and safety.norm_policy == "refuse":
        raise UpdateRefused(
            f"a norm of {norm_of(update.squared):.6g} is beyond the bound of {safety.norm_bound:g}",
            place=update.header.node,
        )
    return clip


@dataclass(frozen=True)
class Outlier:
    """An update that is far larger than others.

    Attributes:
        norm: Its own.
        median: The lower median of norms.
        clip: Scales it down.
    """

    norm: float
    median: float
    clip: Clip


def outliers(norms: Mapping[str, float], earlier: Sequence[float], safety: SafetySection) -> dict[str, Outlier]:
    """Updates of a round whose norm is beyond `norm_ratio` times the lower median: a norm that somebody's update has,
    and that no minority moves beyond the honest ones.

    Args:
        norms: Of the round's updates, by participant.
        earlier: Of updates of the rounds before, so that one participant alone is not its own measure.
        safety: The limits.

    Example:
        >>> found = outliers({"a": 1.0, "b": 1.2, "c": 64.0}, [], SafetySection())
        >>> [(node, one.median, round(one.clip.factor, 4)) for node, one in found.items()]
        [('c', 1.2, 0.1875)]
    """
    if not safety.norm_ratio or not norms:
        return {}
    median = statistics.median_low([*norms.values(), *earlier])
    bound = safety.norm_ratio * median
    if bound == 0:
        return {}
    found = {}
    for node, norm in norms.items():
        top, bottom = norm.as_integer_ratio()
        clip = clip_within((top**2 << 2 * FRACTION_BITS) // bottom**2, bound)
        if clip is not None:
            found[node] = Outlier(norm, median, clip)
    return found


def clips_beside(clips: Mapping[str, Clip | None], far: Mapping[str, Outlier]) -> dict[str, Clip | None]:
    """What participants' updates are scaled down by: as they were when they came, or as outliers, whichever is less.

    Args:
        clips: As they came; None for those that count as they are.
        far: The outliers among them.
    """
    factors = {node: 1.0 if clip is None else clip.factor for node, clip in clips.items()}
    return {**clips, **{node: one.clip for node, one in far.items() if one.clip.factor < factors[node]}}


@dataclass(frozen=True)
class Shares:
    """Who weighs what in a round.

    Attributes:
        weights: By participant, from 1 up; together at most what exact sums allow.
        limit: The largest claim that counts in full.
        capped: Participants that claimed more, by name.
    """

    weights: Mapping[str, int]
    limit: int
    capped: tuple[str, ...]


def round_shares(claimed: Mapping[str, int], share: Literal["examples", "uniform"], safety: SafetySection) -> Shares:
    """The weights of a round's participants, from the number of examples each claims.

    With `uniform` shares everybody weighs 1. The lower median is a number that somebody claimed, and no minority of
    liars moves it beyond the honest claims. Weights that exceed what exact sums allow together are halved until they
    fit.

    Args:
        claimed: Examples by participant, each from 1 to `MAX_EXAMPLES`.
        share: Of the plan.
        safety: The limits.

    Example:
        >>> round_shares({"a": 50, "b": 60, "c": 600_000}, "examples", SafetySection(max_share_ratio=10.0)).weights
        {'a': 50, 'b': 60, 'c': 600}
    """
    if share == "uniform":
        return Shares(dict.fromkeys(claimed, 1), MAX_EXAMPLES, ())
    limit = safety.max_examples or MAX_EXAMPLES
    ratio = share_ratio(safety, len(claimed))
    if ratio and claimed:
        median = statistics.median_low(min(examples, limit) for examples in claimed.values())
        limit = min(limit, int(ratio * median))
    weights = {node: min(examples, limit) for node, examples in claimed.items()}
    while sum(weights.values()) > MAX_EXAMPLES:
        weights = {node: max(1, weight // 2) for node, weight in weights.items()}
    return Shares(weights, limit, tuple(sorted(node for node, examples in claimed.items() if examples > limit)))


def share_ratio(safety: SafetySection, participants: int) -> float:
    """How many times the lower median one participant may weigh; 0 for no limit.

    Args:
        safety: The limits.
        participants: How many there are.

    Example:
        >>> [share_ratio(SafetySection(), n) for n in (2, 4, 6, 50)]
        [3.0, 3.0, 5.0, 10.0]
        >>> share_ratio(SafetySection(max_share_ratio=2.0), 50)
        2.0
    """
    if safety.max_share_ratio is not None:
        return safety.max_share_ratio
    return min(_LARGEST_RATIO, max(_LEAST_RATIO, participants - 1.0))
