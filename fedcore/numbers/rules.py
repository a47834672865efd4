# SPDX-License-Identifier: Apache-2.0
"""How a round's updates become one: a rule each, in the registry `fedcore.registry.RULES`.

A rule here looks at what all participants say of a number, one number at a time (coordinate-wise), and says which
number counts; rules that look at whole updates are in `fedcore.numbers.choosing`. All are integers in units of 2**-32
(|a| <= 2**39), and so is the result: divisions are rounded half to even, and equal numbers need no order among their
senders. So a result depends on the set of updates alone, and on no machine.

| rule | what counts of n numbers | liars it withstands | shares |
|---|---|---|---|
| `mean` | their weighted mean | none | by examples |
| `trimmed-mean` | the mean without the k smallest and the k largest | k: trim n, at least one, below half | equal |
| `median` | the middle one; of an even n the mean of the two in the middle | fewer than half | equal |

With at most so many liars, whatever they send, and however they agree on it, every number of the result lies between
the smallest and the largest that an honest participant sent (Yin et al., arXiv 1803.01498, who also bound how far from
the honest mean that is). Shares are equal since a share comes from what a participant claims: where claims
count, one liar that claims enough examples is a majority.

Every rule but the mean can be of buckets instead of updates (Karimireddy et al., arXiv 2006.09365): updates are put
together by lot, `bucket` in each, and the rule is of the buckets' means. Means of honest updates differ less from each
other than the updates do, so that what few nodes have is less often taken for a lie; a liar spoils one bucket at
most."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Final

from fedcore.registry import RULES, register_rule

if TYPE_CHECKING:
    # Jobs name a rule, and whoever looks at a job needs no sums.
    import numpy as np
    from numpy.typing import NDArray

    from fedcore.numbers.accumulator import Means, RunningSum

__all__ = ["MEAN", "Mean", "Median", "Rule", "TrimmedMean", "rule_of"]


@dataclass(frozen=True)
class Rule(ABC):
    """What becomes of the numbers that participants say of one coordinate.

    Attributes:
        trim: A job's `safety.trim`, exactly as written; for rules that want it.
        liars: A job's `safety.liars`, how many participants may lie; for rules that want it.
        bucket: How many updates are put together, by lot, before the rule looks at them.
    """

    weighted: ClassVar[bool] = False
    """Whether shares by examples count; otherwise all participants have the same."""

    trim: Fraction = Fraction(0)
    liars: int = 1
    bucket: int = 1

    def withstands(self, updates: int) -> int:
        """How many of so many updates may be lies: as many as buckets may, since each spoils one at most.

        Example:
            >>> [Median(bucket=size).withstands(20) for size in (1, 2, 5)]
            [9, 4, 1]
        """
        return self.tolerates(-(-updates // self.bucket))

    @abstractmethod
    def tolerates(self, participants: int) -> int:
        """How many of so many participants, or buckets, may lie without moving a result beyond what honest ones sent,
        or beyond the bound that the rule states."""

    @abstractmethod
    def combine(self, values: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers that count; MUST be integer arithmetic, and not depend on the order of participants.

        Args:
            values: (participants, numbers) in units of 2**-32, |a| <= 2**39; may be overwritten.
            weights: (participants,): from 1 up, together below 2**24; all 1 for a rule that is not `weighted`.
        """


@register_rule("mean")
class Mean(Rule):
    """The weighted mean. A round computes the same numbers as a running sum (`RunningSum`), update by update, without
    looking at what all say of a number.

    Example:
        >>> import numpy as np
        >>> Mean().combine(np.array([[1], [2], [9]]), np.array([1, 1, 2])).tolist()
        [5]
    """

    weighted: ClassVar[bool] = True

    def tolerates(self, participants: int) -> int:
        """One liar moves it as far as its norm and share reach."""
        return 0

    def of(self, total: RunningSum) -> Means:
        """What a round's sum comes to; a mean that hides who said what adds to the sum before it is divided."""
        return total

    def combine(self, values: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
        """Half to even."""
        return _mean((values * weights[:, None]).sum(axis=0), int(weights.sum()))


MEAN: Final = Mean()


@register_rule("median")
class Median(Rule):
    """The number in the middle; of an even number of them, the mean of the two in the middle, half to even.

    Example:
        >>> import numpy as np
        >>> Median().combine(np.array([[5, 1], [4, 2], [900, 4], [-7, 5]]), np.ones(4, np.int64)).tolist()
        [4, 3]
    """

    def tolerates(self, participants: int) -> int:
        """Fewer than half."""
        return max(0, participants - 1) // 2

    def combine(self, values: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
        """The mean of one number, or of two."""
        return _middle(values, self.tolerates(len(values)))


@register_rule("trimmed-mean")
class TrimmedMean(Rule):
    """The mean of what is left without the smallest and the largest numbers, `trim` of them at each end; at least one,
    so that few participants are no reason to believe each.

    Example:
        >>> import numpy as np
        >>> rule = TrimmedMean(Fraction("0.2"))
        >>> rule.combine(np.array([[5], [4], [900], [-7], [6]]), np.ones(5, np.int64)).tolist()
        [5]
        >>> [rule.tolerates(n) for n in (2, 3, 9, 10, 30)]
        [0, 1, 1, 2, 6]
    """

    def tolerates(self, participants: int) -> int:
        """As many as are left out at each end; something must be left."""
        return min(max(1, int(self.trim * participants)), max(0, participants - 1) // 2)

    def combine(self, values: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
        """Half to even."""
        return _middle(values, self.tolerates(len(values)))


def _middle(values: NDArray[np.int64], dropped: int) -> NDArray[np.int64]:
    """The mean of each column without so many of its smallest and of its largest numbers."""
    values.sort(axis=0)
    left = values[dropped : len(values) - dropped]
    if len(left) == 1:
        # Nothing to divide: an odd median is some participant's own number.
        middle: NDArray[np.int64] = left[0]
        return middle
    return _mean(left.sum(axis=0), len(left))


def _mean(total: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    from fedcore.numbers.accumulator import mean_fixed

    return mean_fixed(total, count)


def rule_of(name: str, trim: float, *, liars: int = 1, bucket: int = 1, place: str = "") -> Rule:
    """The rule that a job asks for.

    Args:
        name: As it is registered.
        trim: The job's; taken as it is written, so that 0.1 of 30 are 3.
        liars: The job's.
        bucket: The job's.
        place: Named in the error.

    Raises:
        ConfigError: There is no such rule.
    """
    made: Rule = RULES.get(name, place=place)(Fraction(repr(trim)), liars, bucket)
    return made
