# SPDX-License-Identifier: Apache-2.0
"""How old an update may be in a run whose rounds are buffered, and how much of it then counts.

Nodes of such a run train from the version that they hold, and deliver when they are done. An update that is s versions
behind was made for a state that has moved on since; what it adds is scaled down by a factor that falls with s:
FedBuff's 1 / sqrt(1 + s) (Nguyen et al., arXiv 2106.06639), FedAsync's 1 / (1 + s) (Xie et al., arXiv 1903.03934), or
none.

Factors are rational numbers n / 2**16, the largest that are not above the real one. An update's integers are
multiplied by n and shifted (`fedcore.numbers.clip.Clip`), so a round's sum is as exact and as independent of order as
any other. As in FedBuff the sum is divided by what the updates would weigh without their factors: updates that are all
old move the state less than updates that are all new."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fedcore.numbers.clip import CLIP_BITS, LARGEST_SHIFT, Clip

__all__ = ["NONE_BEHIND", "Staleness", "StalenessFactor", "product", "staleness_clip"]

StalenessFactor = Literal["sqrt", "inverse", "constant"]
"""How much of an update counts that is s versions behind: 1 / sqrt(1 + s), 1 / (1 + s), or all of it."""


def staleness_clip(factor: StalenessFactor, behind: int) -> Clip | None:
    """What an update is scaled down by; None where it counts whole.

    Args:
        factor: Which.
        behind: Versions that the update is behind.

    Example:
        >>> [staleness_clip("sqrt", behind).factor for behind in (3, 8)], staleness_clip("sqrt", 0)
        ([0.5, 0.3333282470703125], None)
    """
    if behind < 0:
        raise ValueError(f"an update cannot be {-behind} versions ahead")
    if factor == "constant" or behind == 0:
        return None
    # The floor of a root is that of the root of the floor: no float has a say.
    numerator = math.isqrt(2 ** (2 * CLIP_BITS) // (1 + behind)) if factor == "sqrt" else 2**CLIP_BITS // (1 + behind)
    return Clip(numerator, CLIP_BITS)


def product(one: Clip | None, other: Clip | None) -> Clip | None:
    """Both factors, as one: never above their product, and at most 2**-15 of itself below it, as far as a factor can be
    that small.

    Args:
        one: None for 1.
        other: None for 1.

    Example:
        >>> product(Clip(1, 1), Clip(3, 2)), product(None, Clip(3, 2))
        (Clip(numerator=3, shift=3), Clip(numerator=3, shift=2))
    """
    if one is None or other is None:
        return one or other
    numerator, shift = one.numerator * other.numerator, one.shift + other.shift
    excess = max(0, numerator.bit_length() - CLIP_BITS, shift - LARGEST_SHIFT)
    return Clip(numerator >> excess, shift - excess)


@dataclass(frozen=True)
class Staleness:
    """What a run does with updates that are behind.

    Attributes:
        most: Versions by which one may be.
        factor: How much of it counts.
        first: The first round that is buffered: what was trained for an earlier one counts in no later one.
    """

    most: int
    factor: StalenessFactor
    first: int = 1

    def allowed(self, server_round: int) -> int:
        """Versions by which an update may be behind in a round.

        Args:
            server_round: In which it counts.

        Example:
            >>> [Staleness(3, "sqrt", first=2).allowed(number) for number in (1, 2, 3, 9)]
            [0, 0, 1, 3]
        """
        return max(0, min(self.most, server_round - self.first))

    def behind(self, version: int, began: Mapping[str, int]) -> dict[str, tuple[int, Clip | None]]:
        """Of participants whose update began from an older version: how many versions older, and what it is scaled down
        by.

        Args:
            version: That the round starts from.
            began: By participant, the version that the update was trained from.

        Example:
            >>> Staleness(9, "inverse").behind(5, {"a": 5, "b": 4})
            {'b': (1, Clip(numerator=32768, shift=16))}
        """
        return {
            node: (version - older, staleness_clip(self.factor, version - older))
            for node, older in began.items()
            if older != version
        }


NONE_BEHIND: Final = Staleness(0, "constant")
"""Of runs whose rounds are synchronous."""
