# SPDX-License-Identifier: Apache-2.0
"""What a plan says of secure aggregation: how updates are made into integers that masks can cover, and how many nodes
hold what is needed to take the masks off."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from fedcore.errors import SecureError
from fedcore.fields.checked import Positive

__all__ = ["EXTRA_LANES", "FRACTION_BITS", "MOST_WEIGHT", "VALUE_BITS", "SecureRound", "lane_bytes_for"]

FRACTION_BITS = 32
VALUE_BITS = 7
"""As of every exact sum (`fedcore.numbers.accumulator`): numbers are multiples of 2**-32, of at most 2**7."""
MOST_WEIGHT = 2**24 - 1
EXTRA_LANES = 2
"""Behind the numbers: the weight, and the loss."""


class SecureRound(msgspec.Struct, frozen=True, kw_only=True):
    """Of a plan in a run with secure aggregation."""

    lane_bytes: Annotated[int, Meta(ge=4, le=8)]
    """A number of the sum takes so many bytes: masks are added modulo 2**(8 * lane_bytes)."""
    fraction_bits: Annotated[int, Meta(ge=8, le=FRACTION_BITS)] = FRACTION_BITS
    """Numbers are rounded to multiples of 2**-fraction_bits on the node, half to even."""
    norm_bound: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    """A node scales its own update down to this norm; 0 for no bound."""
    most_examples: Annotated[int, Meta(ge=1, le=MOST_WEIGHT)] = MOST_WEIGHT
    """A node weighs at most so many examples."""
    threshold: Annotated[float, Meta(ge=0.5, lt=1)] = 2 / 3
    """More than this share of a node's holders give its secrets back."""
    neighbours: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Nodes mask with at least so many others, beside what the number of nodes asks for
    (`fedcore.secure.graph.degree_for`)."""
    least: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """With fewer updates than this nothing is opened; 0: with as few as masks allow. Where nodes add noise, their parts
    are sized for it (`fedcore.privacy.shares`), and it is the same in all attempts of a run."""

    def require_room(self, nodes: Positive, *, uniform: bool, noise: int = 0) -> None:
        """Return if no sum of so many nodes can go round.

        Args:
            nodes: How many may take part.
            uniform: All weigh one.
            noise: Of their sum, at most, in units of 2**-fraction_bits.

        Raises:
            SecureError: One can: what comes of it would be another number.
        """
        weight = 1 if uniform else self.most_examples
        needed = lane_bytes_for(nodes, self.fraction_bits, self.norm_bound, weight, noise)
        if self.lane_bytes < needed:
            raise SecureError(f"the sum of {nodes} nodes needs {needed} bytes a number, and has {self.lane_bytes}")


def lane_bytes_for(nodes: int, fraction_bits: int, norm_bound: float, most_weight: int, noise: int = 0) -> int:
    """The fewest bytes that hold any sum of weighted numbers, with its sign.

    Args:
        nodes: How many may take part.
        fraction_bits: Of the numbers.
        norm_bound: Of an update, and so of each of its numbers; 0: they are at most 2**7.
        most_weight: Of a node; together they are never more than `MOST_WEIGHT`.
        noise: Of the sum, at most, in units of 2**-fraction_bits.

    Example:
        >>> lane_bytes_for(16, 32, 0.0, MOST_WEIGHT), lane_bytes_for(16, 32, 0.0, 1), lane_bytes_for(16, 20, 1.0, 1)
        (8, 6, 4)
    """
    largest = 1 << VALUE_BITS
    if norm_bound:
        while largest > 1 and norm_bound <= largest / 2:
            largest //= 2
    total = min(MOST_WEIGHT, nodes * most_weight) * (largest << fraction_bits) + noise
    return max(4, min(8, -(-(total.bit_length() + 1) // 8)))
