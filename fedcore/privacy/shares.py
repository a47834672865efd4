# SPDX-License-Identifier: Apache-2.0
"""Noise of nodes whose updates are masked: each adds a part of it before it masks, and what nobody sees but in the sum
is the noise that the sum needs (Kairouz, Liu, Steinke, arXiv 2102.06387).

A round is opened with `least` updates or more. Of these, as many as may tell the coordinator their noise count for
nothing; what the others have added must be enough by itself. With h of them, each of sigma_1,

    h sigma_1**2 >= (z C)**2

so that whoever vanishes, and however many stay, the sum has the noise that is accounted for, or more: more noise never
costs anything. Nothing is known of how many will stay when a node draws its part.

A sum of m discrete Gaussians is not one itself, but nearly: its divergence from one of variance m sigma_1**2 is at most
tau = 10 sum_{k=1}^{m-1} exp(-2 pi**2 sigma_1**2 k / (k + 1)) for each number (theorem 13 there, and what it adds to
epsilon grows with the square root of the numbers). With sigma_1 at `LEAST_SHARE` or more tau is below 10**-1000, and so
what the accountant says of the Gaussian holds for it."""

from __future__ import annotations

import math
from typing import Final

from fedcore.privacy.noise import FRACTION_BITS, sigma_of

__all__ = ["LEAST_SHARE", "counted_on", "share_sigma", "spread"]

LEAST_SHARE: Final = 16
"""Units, of a node's noise."""
_TELLING: Final = 10
"""One in so many of the least, and one at least, may tell the coordinator what noise it has added."""
_DEVIATIONS: Final = 16
"""Of a sum's noise: beyond them there is less than 2**-180 of it."""


def counted_on(least: int) -> int:
    """Of how many nodes the noise must be enough.

    Args:
        least: Updates with which a round is opened, 3 or more.

    Example:
        >>> [counted_on(least) for least in (3, 10, 11, 100)]
        [2, 9, 9, 90]
    """
    return least - max(1, -(-least // _TELLING))


def share_sigma(noise_multiplier: float, clip: float, least: int, fraction_bits: int) -> int:
    """The noise that a node adds to each of its numbers, in units of 2**-fraction_bits; rounded up, in integers.

    Args:
        noise_multiplier: z, of the sum.
        clip: C, the largest norm of an update.
        least: Updates with which a round is opened.
        fraction_bits: Of masked numbers.

    Example:
        >>> share_sigma(1.0, 1.0, 5, 32) == 2**31
        True
    """
    dropped, honest = 1 << (FRACTION_BITS - fraction_bits), counted_on(least)
    square = (-(-sigma_of(noise_multiplier, clip) // dropped)) ** 2
    found = math.isqrt(square // honest)
    return found + (found * found * honest < square)


def spread(sigma: int, nodes: int) -> int:
    """Room that the noise of so many takes in a sum, with either sign.

    Example:
        >>> spread(0, 10), spread(100, 9)
        (0, 6400)
    """
    return _DEVIATIONS * sigma * (math.isqrt(nodes) + 1)
