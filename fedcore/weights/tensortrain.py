# SPDX-License-Identifier: Apache-2.0
"""Matrices as tensor trains: a matrix's numbers are a tensor of several small sides, and each number a product of small
matrices, one for each side (Oseledets, SIAM J. Sci. Comput. 33(5), 2011). Here are their shapes alone, which plans say.

Legend: W (n, b), sides with k_1 ... k_J = n b, core j is (r_(j-1) k_j, r_j), r_0 = r_J = 1.
"""

from __future__ import annotations

import functools
import math

__all__ = ["CORES", "core_shapes", "first_spread", "sides"]

CORES = 5
"""J: three sides of n, two of b."""


@functools.cache
def sides(n: int, b: int) -> tuple[int, ...]:
    """k_1 ... k_J: n in three factors and b in two, each time those with the smallest sum, the smallest in the middle.

    Example:
        >>> sides(384, 64), sides(64, 16), sides(7, 3)
        ((8, 6, 8, 8, 8), (4, 4, 4, 4, 4), (7, 1, 1, 3, 1))
    """
    three = min(
        ((i, j, n // i // j) for i in _divisors(n) for j in _divisors(n // i)), key=lambda of: (sum(of), sorted(of))
    )
    smallest, middle, largest = sorted(three)
    two = min(((i, b // i) for i in _divisors(b)), key=lambda of: (sum(of), -of[0]))
    return largest, smallest, middle, *two


def core_shapes(n: int, b: int, rank: int) -> tuple[tuple[int, int], ...]:
    """Shapes of the cores as matrices; no rank is larger than what is on either side of it can have.

    Example:
        >>> shapes = core_shapes(384, 64, 5)
        >>> shapes, sum(rows * columns for rows, columns in shapes)
        (((8, 5), (30, 5), (40, 5), (40, 5), (40, 1)), 630)
    """
    k = sides(n, b)
    ranks = [min(rank, math.prod(k[:j]), math.prod(k[j:])) for j in range(len(k) + 1)]
    return tuple((ranks[j] * k[j], ranks[j + 1]) for j in range(len(k)))


def first_spread(n: int, b: int, rank: int, inputs: int) -> float:
    """What cores are drawn between, minus and plus, so that a number of W has the variance 1 / inputs; in units of
    2**-10, so that no machine's powers and roots make another float of it.

    Example:
        >>> first_spread(384, 64, 5, 384)
        0.501953125
    """
    shapes = core_shapes(n, b, rank)
    paths = math.prod(columns for _, columns in shapes)
    deviation = math.exp(-math.log(inputs * paths) / (2 * len(shapes)))
    return max(1, round(math.sqrt(3) * deviation * 1024)) / 1024


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]
