# SPDX-License-Identifier: Apache-2.0
"""Rules that look at whole updates: which of them count, and how much, by how far they are from each other.

Distances are exact: squares of integers in units of 2**-64, the same on every machine (`fedcore.model.distances`), and
all that is decided from them is decided by integers without limit. Between equal scores the order decides in which
distances are given, which a round draws by lot from its seed.

| rule | what counts of n updates | liars it withstands, f | what that means |
|---|---|---|---|
| `krum` | the one nearest to its n - f - 2 nearest | `liars`, if n >= 2 f + 3 | within K of an honest update |
| `multi-krum` | the mean of the n - f - 2 that are best so | the same | each of them is |
| `geometric-median` | the point with the least sum of distances | fewer than half | within M of each honest update |

K = sqrt((n - f - 2) / (n - 2 f - 2)) D and M = 2 (n - f) / (n - 2 f) D, where D is the largest distance between two
honest updates.

Why: of the n - f - 2 nearest to an update that counts, n - 2 f - 2 at least are honest, and the sum of their squares is
no larger than that of some honest update, whose n - f - 1 honest neighbours are all within D. The bound of the
geometric median is lemma 2.1 of Minsker, arXiv 1308.1334.

Sources: Blanchard et al., "Machine Learning with Adversaries", arXiv 1703.02757 (Krum); Damaskinos et al.,
"AggregaThor" (how many multi-Krum may take); Pillutla et al., arXiv 1912.13445 (the geometric median by Weiszfeld's
iteration, smoothed where it meets an update)."""

from __future__ import annotations

import math
import statistics
from abc import abstractmethod
from collections.abc import Sequence
from operator import mul
from typing import TYPE_CHECKING, Final

from fedcore.numbers.rules import MEAN, Rule
from fedcore.registry import register_rule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Choosing", "Distances", "GeometricMedian", "Krum", "MultiKrum"]

Distances = Sequence[Sequence[int]]
"""Of each update to each, squared, in any one unit; symmetric, exact."""
_WEIGHT_BITS: Final = 23
"""Weights of a geometric median together are at most 2**23: within what exact sums allow."""
_RATIO_BITS: Final = 40
_MOST_ITERATIONS: Final = 100


class Choosing(Rule):
    """A rule that gives each update a weight, by the distances between them; what counts is the mean by these
    weights."""

    @abstractmethod
    def choose(self, distances: Distances) -> list[int]:
        """The weight of each update: 0 where it does not count; one at least does, and together they are below 2**24.

        Args:
            distances: Between updates, or between means of buckets.
        """

    def combine(self, values: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
        """The mean of those that count, by the weights of `choose`, half to even."""
        return MEAN.combine(values, weights)


@register_rule("krum")
class Krum(Choosing):
    """The update that is nearest to its n - f - 2 nearest ones: a round learns from one node alone.

    Example:
        >>> points = [0, 1, 3, 100, 2]
        >>> Krum(liars=1).choose([[(a - b) ** 2 for b in points] for a in points])
        [0, 1, 0, 0, 0]
        >>> [Krum(liars=2).tolerates(n) for n in (6, 7, 30)]
        [0, 2, 2]
    """

    def tolerates(self, participants: int) -> int:
        """As many as the job says, from 2 f + 3 participants on."""
        return self.liars if participants >= 2 * self.liars + 3 else 0

    def choose(self, distances: Distances) -> list[int]:
        """One of them."""
        return _best(self._scores(distances), 1)

    def _scores(self, distances: Distances) -> list[int]:
        """Of each update, the sum of squared distances to its nearest."""
        nearest = max(1, len(distances) - self.liars - 2)
        return [sum(sorted((*row[:own], *row[own + 1 :]))[:nearest]) for own, row in enumerate(distances)]


@register_rule("multi-krum")
class MultiKrum(Krum):
    """The mean of the n - f - 2 updates that are nearest to their n - f - 2 nearest ones; scores are not made anew as
    updates are taken.

    Example:
        >>> points = [0, 1, 3, 100, 2]
        >>> MultiKrum(liars=1).choose([[(a - b) ** 2 for b in points] for a in points])
        [0, 1, 0, 0, 1]
    """

    def choose(self, distances: Distances) -> list[int]:
        """All of one weight."""
        return _best(self._scores(distances), max(1, len(distances) - self.liars - 2))


def _best(scores: Sequence[int], count: int) -> list[int]:
    """1 for those with the smallest scores; of equal ones for the first."""
    chosen = set(sorted(range(len(scores)), key=scores.__getitem__)[:count])
    return [int(index in chosen) for index in range(len(scores))]


@register_rule("geometric-median")
class GeometricMedian(Choosing):
    """The point with the least sum of distances to all updates, as a mean of them with integer weights.

    Weiszfeld's iteration: from equal weights w, each update's next weight is one over its distance to the mean by w,
    which exact distances between updates tell: |W x_i - sum_j w_j x_j|**2 = W sum_j w_j d_ij - sum_jk w_j w_k d_jk / 2,
    with W the sum of w. Its root is rounded down, and so are weights: to 2**-40 of the largest, then to 2**-23 of all.
    A distance below 2**-10 of the lower median of them counts as that. It ends when no weight changes, or after 100
    times; each time are n**2 products of integers.

    Example:
        >>> points = [0, 1, 2, 1000]
        >>> weights = GeometricMedian().choose([[(a - b) ** 2 << 64 for b in points] for a in points])
        >>> 1 <= sum(map(mul, weights, points)) / sum(weights) <= 2
        True
    """

    def tolerates(self, participants: int) -> int:
        """Fewer than half."""
        return max(0, participants - 1) // 2

    def choose(self, distances: Distances) -> list[int]:
        """Up to 2**23 together; an update that is far from all others may have none."""
        weights = [(1 << _WEIGHT_BITS) // len(distances)] * len(distances)
        for _ in range(_MOST_ITERATIONS):
            before, weights = weights, _nearer(weights, distances)
            if weights == before:
                break
        return weights


def _nearer(weights: Sequence[int], distances: Distances) -> list[int]:
    """One over each update's distance to the mean by the weights before."""
    total, sums = sum(weights), [sum(map(mul, weights, row)) for row in distances]
    middle = sum(map(mul, weights, sums)) // 2  # Even: every pair is in it twice.
    # Each times the sum of weights, in which all are alike.
    roots = [math.isqrt(total * one - middle) for one in sums]
    least = max(1, statistics.median_low(roots) >> 10)
    roots = [max(root, least) for root in roots]
    closest = min(roots)
    ratios = [(closest << _RATIO_BITS) // root for root in roots]
    whole = sum(ratios)
    return [(ratio << _WEIGHT_BITS) // whole for ratio in ratios]
