# SPDX-License-Identifier: Apache-2.0
"""Fixed-point numbers, block by block: quotients and products that are integers, rounded the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCALE_BITS", "block_rows", "blocks", "mean_fixed", "scaled_fixed"]

SCALE_BITS = 16
"""A factor on fixed-point numbers is a multiple of 2**-16."""
# 1,024 rows of 64 columns: few enough to stay in a processor's cache while several operations go over them, many enough
# that NumPy's own time for each does not count.
_BLOCK_ELEMENTS = 65_536


def blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows in blocks that stay in a processor's cache."""
    step = block_rows(shape)
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def block_rows(shape: tuple[int, ...]) -> int:
    """How many rows there are in a block."""
    return min(shape[0], max(1, _BLOCK_ELEMENTS // max(1, math.prod(shape[1:]))))


def mean_fixed(total: NDArray[np.int64], divisor: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """total / divisor as integers, half to even: the same on every machine, because floats only guess, and integers
    decide.

    Args:
        total: (m, c) or (numbers,), each at most 2**51 times its divisor: a mean of numbers within the bounds is at
            most 2**39.
        divisor: From 1 up; one for all, or of each column (c,).
    """
    divisor = np.asarray(divisor, np.int64)
    each, inverse = np.broadcast_to(divisor, total.shape[1:] or (1,)), 1.0 / divisor
    quotient = np.empty(total.shape, np.int64)
    room = (block_rows(total.shape), *total.shape[1:]) if total.size else total.shape
    guess, rest = np.empty(room, np.float64), np.empty(room, np.int64)
    for rows in blocks(total.shape) if total.size else ():
        count, found = rows.stop - rows.start, quotient[rows]
        near, twice = guess[:count], rest[:count]
        np.copyto(near, total[rows])
        near *= inverse
        np.rint(near, out=near)
        np.copyto(found, near, casting="unsafe")
        # The guess is one off at most, so twice what is left is at most twice the divisor.
        np.multiply(found, divisor, out=twice)
        np.subtract(total[rows], twice, out=twice)
        twice += twice
        if twice.max() >= divisor.min() or twice.min() <= -divisor.min():
            odd = found & 1 == 1
            up = (twice > each) | ((twice == each) & odd)
            down = (twice < -each) | ((twice == -each) & odd)
            found += up
            found -= down
    return quotient


def scaled_fixed(values: NDArray[np.int64], factor: float) -> NDArray[np.int64]:
    """Integers times a factor that is rounded to a multiple of 2**-16, the product half to even.

    Args:
        values: At most 2**(62 - 16) / max(1, factor) each.
        factor: Not negative.

    Example:
        >>> scaled_fixed(np.array([10, 11]), 0.5).tolist()
        [5, 6]
    """
    return mean_fixed(values * np.int64(round(factor * 2**SCALE_BITS)), 2**SCALE_BITS)
