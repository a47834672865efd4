# SPDX-License-Identifier: Apache-2.0
"""Quantised accumulators and the exact running sum.

An accumulator A (m, c) travels as small integers with one power-of-two scale per row: A ~ q * 2**e. The coordinator adds
`examples * q * 2**(e + 32)` as 64-bit integers. Integer addition is associative, so arrival order, restarts and the number
of aggregation workers cannot change one bit, and memory is one running sum however many participants there are.

Bounds that keep every partial sum below 2**63: |q * 2**e| <= 2**7, e >= -32, and at most 2**24 - 1 examples in a round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import UpdateRefused
from fedcore.types import Bits

__all__ = [
    "FRACTION_BITS",
    "MAX_EXAMPLES",
    "RowScaled",
    "RunningSum",
    "mean_fixed",
    "quantise_rows",
    "row_exponents",
]

FRACTION_BITS = 32
VALUE_BITS = 7
MAX_EXAMPLES = 2 ** (63 - FRACTION_BITS - VALUE_BITS) - 1
# 256 rows of up to 64 columns stay in the second-level cache while they are multiplied and added.
_BLOCK_ELEMENTS = 16_384


@dataclass(frozen=True)
class RowScaled:
    """Integers with one power-of-two scale per row: the matrix q * 2**exponent[:, None].

    Attributes:
        q: int16 (m, c); a 4- or 8-bit accumulator uses a part of the range.
        exponent: int8 (m,), -32 or more.
    """

    q: NDArray[np.int16]
    exponent: NDArray[np.int8]

    def values(self) -> NDArray[np.float32]:
        """The matrix as float32 (m, c); exact, since a 16-bit integer times a power of two fits."""
        return np.asarray(np.ldexp(self.q.astype(np.float32), self.exponent.astype(np.int32)[:, None]), np.float32)

    def scale(self) -> NDArray[np.float32]:
        """2**exponent as float32 (m,)."""
        return np.asarray(np.ldexp(np.float32(1), self.exponent.astype(np.int32)), np.float32)


def row_exponents(absmax: NDArray[np.float64], largest: int) -> NDArray[np.int64]:
    """The smallest e >= -32 per row with absmax <= largest * 2**e; exact, by exponents rather than logarithms."""
    mantissa, exponent = np.frexp(absmax / largest)
    exponent = np.where(mantissa == 0.5, exponent - 1, exponent)
    return np.maximum(np.where(absmax == 0, -FRACTION_BITS, exponent), -FRACTION_BITS).astype(np.int64)


def quantise_rows(values: NDArray[np.float32], bits: Bits, *, place: str = "") -> RowScaled:
    """Round an accumulator to `bits` bits a number, half to even, with one power-of-two scale per row.

    Args:
        values: float32 (m, c).
        bits: 4, 8 or 16: integers in -(2**(bits-1) - 1) .. 2**(bits-1) - 1.
        place: Named in the error.

    Raises:
        UpdateRefused: A value is not finite, or so large that training has diverged.

    Example:
        >>> quantise_rows(np.array([[0.5, -0.25]], np.float32), 8).values().tolist()
        [[0.5, -0.25]]
    """
    absmax = np.abs(values).max(axis=1, initial=0).astype(np.float64)
    if not np.isfinite(absmax).all():
        raise UpdateRefused("an accumulator is not finite", place=place, remedy="lower the learning rate")
    if (absmax > 2**VALUE_BITS).any():
        raise UpdateRefused(
            f"an accumulator reaches {absmax.max():.3g}, more than {2**VALUE_BITS}",
            place=place,
            remedy="lower the learning rate",
        )
    exponent = row_exponents(absmax, 2 ** (bits - 1) - 1)
    q = np.rint(np.ldexp(values, -exponent.astype(np.int32)[:, None]))
    return RowScaled(q.astype(np.int16), exponent.astype(np.int8))


class RunningSum:
    """The exact weighted sum of a round's accumulators.

    Args:
        shapes: (m, c) of each entry by name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        self.examples = 0
        self._sums = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}

    def add_examples(self, examples: int) -> None:
        """Count a participant's examples (its weight) into the divisor of the mean.

        Raises:
            UpdateRefused: The round would hold more examples than exact sums allow, or none.
        """
        if examples < 1 or self.examples + examples > MAX_EXAMPLES:
            raise UpdateRefused(
                f"{examples} examples on top of {self.examples} is outside 1 to {MAX_EXAMPLES}",
                remedy="use uniform shares",
            )
        self.examples += examples

    def add(self, name: str, part: RowScaled, examples: int, columns: NDArray[np.intp] | slice = slice(None)) -> None:
        """Add `examples` times a part of entry `name`; `columns` are the part's columns within the entry."""
        total = self._sums[name]
        factor = np.int64(examples) << (part.exponent.astype(np.int64) + FRACTION_BITS)
        block_rows = max(1, _BLOCK_ELEMENTS // max(1, part.q.shape[1]))
        for start in range(0, len(total), block_rows):
            rows = slice(start, start + block_rows)
            total[rows, columns] += part.q[rows] * factor[rows, None]

    def means(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each entry's weighted mean in units of 2**-32."""
        for name, total in self._sums.items():
            yield name, mean_fixed(total, max(1, self.examples))


def mean_fixed(total: NDArray[np.int64], divisor: int) -> NDArray[np.int64]:
    """total / divisor as integers, half to even: the same on every machine because nothing is a float."""
    quotient, remainder = np.divmod(total, np.int64(divisor))
    twice = 2 * remainder
    up = (twice > divisor) | ((twice == divisor) & (quotient & 1 == 1))
    return np.asarray(quotient + up, np.int64)
