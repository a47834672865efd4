# SPDX-License-Identifier: Apache-2.0
"""Orthogonal rows of equal length, by Gram-Schmidt on rows of normal numbers, in integers.

A row is a row of quantiles (`fedcore.subspaces.rows.gaussian`) less its part along the rows before it, brought to
length sqrt(n) and rounded to units of 1/32. Nothing but integers is used, and every division rounds alike on both sides
of zero: so turning the sign of a column, or exchanging two, turns P alike, and E[P^T P] has equal numbers on its
diagonal and zeros beside it; rounding puts the diagonal off by a thousandth. Rows are orthogonal up to their own
rounding. (Signs would have whole rows rounded the same way: the second has two values.)"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ConfigError
from fedcore.subspaces.rows.gaussian import QUANTILES
from fedcore.subspaces.rows.stream import stream

__all__ = ["ORTHONORMAL_UNIT", "orthonormal"]

_DOMAIN = b"fedkrso orthonormal 1"
ORTHONORMAL_UNIT: Final = 32
"""What an entry of mean size becomes; entries are cut off at 127, almost four times that."""
_FRACTION_BITS: Final = 10
_ROOT_BITS: Final = 15
# A candidate of which less than 1/32 of the mean length is left after the rows before it is passed over.
_LEAST_LENGTH: Final = 44 * 2**_FRACTION_BITS // 32
# Candidates beyond the rank that a stream begins with; hardly ever is one needed.
_SPARE: Final = 4


def orthonormal(seed: int, layer: str, r: int, n: int) -> NDArray[np.int8]:
    """Rows (r, n), each of length 32 sqrt(n) up to rounding. For n up to a million the integers fit 63 bits.

    Raises:
        ConfigError: More rows than inputs.
    """
    if r > n:
        raise ConfigError(
            f"{r} rows of {n} inputs cannot be orthogonal",
            place=layer,
            remedy="lower method.rank, or use another projection",
        )
    rows = np.zeros((r, n), np.int8)
    found, candidate, count = 0, 0, r + _SPARE
    candidates = _candidates(seed, layer, r, n, count)
    while found < r:
        if candidate == count:
            count *= 2
            candidates = _candidates(seed, layer, r, n, count)
        row = _next_row(candidates[candidate], rows[:found].astype(np.int64))
        candidate += 1
        if row is not None:
            rows[found] = row
            found += 1
    return rows


def _candidates(seed: int, layer: str, r: int, n: int, count: int) -> NDArray[np.int64]:
    found = np.frombuffer(stream(_DOMAIN, seed, layer, r, n, count * n), np.uint8).reshape(count, n)
    return np.asarray(np.array(QUANTILES, np.int64)[found] << _FRACTION_BITS, np.int64)


def _next_row(rest: NDArray[np.int64], before: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """A row from a candidate; None where that is almost a sum of the rows before."""
    n = len(rest)
    for row in before:
        rest = rest - _divided(int(rest @ row) * row, int(row @ row))
    square = int(rest @ rest)
    if square < n * _LEAST_LENGTH**2:
        return None
    length = ORTHONORMAL_UNIT * math.isqrt(n << 2 * _ROOT_BITS)
    return np.clip(_divided(rest * length, math.isqrt(square << 2 * _ROOT_BITS)), -127, 127)


def _divided(numbers: NDArray[np.int64], divisor: int) -> NDArray[np.int64]:
    """To the nearest integer, half away from zero."""
    return np.asarray(np.sign(numbers) * ((2 * np.abs(numbers) + divisor) // (2 * divisor)), np.int64)
