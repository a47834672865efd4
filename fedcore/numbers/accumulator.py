# SPDX-License-Identifier: Apache-2.0
"""Quantised accumulators and the exact running sum.

An accumulator A (m, c) travels as small integers with one power-of-two scale per row: A ~ q * 2**e. The coordinator
adds `examples * q * 2**(e + 32)` as 64-bit integers. Integer addition is associative, so arrival order, restarts and
the number of aggregation workers cannot change one bit, and memory is one running sum however many participants there
are.

Bounds that keep every partial sum below 2**63: -32 <= e <= 7 and |q * 2**e| <= 2**7, so that a number is an integer a
of 2**-32 with |a| <= 2**39 (`within_bounds`), and at most 2**24 - 1 examples in a round.

An update may be scaled down before it is added (`Clip`). Its numbers are then the integers trunc(a * f / 2**k) with
f < 2**16: |a * f| < 2**55, and rounding towards zero gives |trunc(a * f / 2**k)| <= |a| * f / 2**k, so the bounds above
hold as they are and the norm of what is added is at most f / 2**k times the norm of what came. Clipped numbers depend
on the update and its factor alone: their sum is as exact and as independent of order as any other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import UpdateRefused
from fedcore.fields.types import Bits
from fedcore.numbers.clip import CLIP_BITS, LARGEST_SHIFT, Clip
from fedcore.numbers.entries import FRACTION_BITS, VALUE_BITS, Floats, MatrixEntry, RowScaled

__all__ = [
    "FRACTION_BITS",
    "MAX_EXAMPLES",
    "SCALE_BITS",
    "VALUE_BITS",
    "Floats",
    "MatrixEntry",
    "Means",
    "RowScaled",
    "RunningSum",
    "clip_within",
    "mean_fixed",
    "norm_of",
    "quantise_rows",
    "require_range",
    "row_exponents",
    "scaled_fixed",
    "squared_norm",
    "within_bounds",
]

MAX_EXAMPLES = 2 ** (63 - FRACTION_BITS - VALUE_BITS) - 1
# 256 rows of up to 64 columns stay in the second-level cache while they are multiplied and added.
_BLOCK_ELEMENTS = 16_384


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
    require_range(absmax.max(initial=0), place)
    exponent = row_exponents(absmax, 2 ** (bits - 1) - 1)
    q = np.rint(np.ldexp(values, -exponent.astype(np.int32)[:, None]))
    return RowScaled(q.astype(np.int16), exponent.astype(np.int8))


def require_range(largest: float, place: str) -> None:
    """Check the largest size of a number that is to travel.

    Raises:
        UpdateRefused: It is not finite, or so large that training has diverged.
    """
    if not math.isfinite(largest):
        raise UpdateRefused("an accumulator is not finite", place=place, remedy="lower the learning rate")
    if largest > 2**VALUE_BITS:
        raise UpdateRefused(
            f"an accumulator reaches {largest:.3g}, more than {2**VALUE_BITS}",
            place=place,
            remedy="lower the learning rate",
        )


def within_bounds(part: MatrixEntry) -> bool:
    """Whether exact sums allow every number: at most 2**7, and exponents of rows from -32 to 7."""
    return part.largest() <= 1 << (FRACTION_BITS + VALUE_BITS)


def squared_norm(part: MatrixEntry) -> int:
    """The sum of squares in units of 2**-64: an exact integer, the same for any order of rows, entries and machines.

    Args:
        part: Within the bounds (`within_bounds`), of at most 2**32 numbers: rows of one exponent are summed as int64.

    Example:
        >>> squared_norm(quantise_rows(np.array([[3.0, 4.0]], np.float32), 8)) == 25 * 2**64
        True
    """
    if not isinstance(part, RowScaled):
        return sum(_squares(part.units(rows)) for rows in _blocks(part.shape))
    squares = np.empty(len(part.q), np.int64)
    block_rows = max(1, _BLOCK_ELEMENTS // max(1, part.q.shape[1]))
    for start in range(0, len(squares), block_rows):
        q = part.q[start : start + block_rows].astype(np.int64)
        squares[start : start + block_rows] = np.einsum("ij,ij->i", q, q)
    return sum(int(squares[part.exponent == e].sum()) << 2 * (int(e) + FRACTION_BITS) for e in np.unique(part.exponent))


def _squares(units: NDArray[np.int64]) -> int:
    """Of numbers of up to 2**39, as high and low halves: no sum of products of a block reaches 2**63."""
    half = np.int64(20)
    high, low = np.abs(units) >> half, np.abs(units) & (2**20 - 1)
    parts = ((high, high, 40), (high, low, 21), (low, low, 0))
    return sum(sum(map(int, np.einsum("ij,ij->i", one, other))) << shift for one, other, shift in parts)


def _blocks(shape: tuple[int, int]) -> Iterator[slice]:
    """Rows in blocks that stay in a processor's cache."""
    step = max(1, _BLOCK_ELEMENTS // max(1, shape[1]))
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def norm_of(squared: int) -> float:
    """The norm, from the sum of squares in units of 2**-64; two correctly rounded operations, so the same on every
    machine."""
    return math.sqrt(squared / (1 << 2 * FRACTION_BITS))


def clip_within(squared: int, bound: float) -> Clip | None:
    """The largest factor of 16 bits that brings a norm down to a bound; None when it is within.

    Args:
        squared: Sum of squares in units of 2**-64.
        bound: More than zero. Compared exactly: a norm equal to the bound is within it.

    Example:
        >>> clip_within(25 * 2**64, 5.0) is None, clip_within(25 * 2**64, 1.25)
        (True, Clip(numerator=32768, shift=17))
    """
    top, bottom = bound.as_integer_ratio()
    allowed, found = top**2 << (2 * FRACTION_BITS), squared * bottom**2
    if found <= allowed:
        return None
    shift = CLIP_BITS
    # The largest f with (f / 2**k)**2 * found <= allowed: f < 2**k since found > allowed, and doubling stops below
    # 2**16.
    while (numerator := math.isqrt((allowed << 2 * shift) // found)) < 2 ** (CLIP_BITS - 1) and shift < LARGEST_SHIFT:
        shift += 1
    return Clip(numerator, shift)


class Means(Protocol):
    """What a round's updates come to."""

    def means(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each entry's numbers in units of 2**-32, |a| <= 2**39."""
        ...


class RunningSum:
    """The exact weighted sum of a round's accumulators.

    Args:
        shapes: (m, c) of each entry by name.
        by_column: Entries whose mean is, column by column, over those who have the column.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], by_column: frozenset[str] = frozenset()) -> None:
        self.examples = 0
        self._sums = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self._having = {name: np.zeros(shapes[name][1], np.int64) for name in by_column}

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

    def add(
        self,
        name: str,
        part: MatrixEntry,
        examples: int,
        columns: NDArray[np.intp] | slice = slice(None),
        clip: Clip | None = None,
    ) -> None:
        """Add `examples` times a part of entry `name`.

        Args:
            name: The entry.
            part: Within the bounds (`within_bounds`).
            examples: The participant's weight.
            columns: The part's columns within the entry.
            clip: Scales the part down first.
        """
        total = self._sums[name]
        if name in self._having:
            self._having[name][columns] += examples
        if clip is None and isinstance(part, RowScaled):
            # The usual case, with one product a number: several times faster.
            factor = (np.int64(examples) << (part.exponent.astype(np.int64) + FRACTION_BITS))[:, None]
            for rows in _blocks(part.shape):
                total[rows, columns] += part.q[rows] * factor[rows]
            return
        for rows in _blocks(part.shape):
            units = part.units(rows)
            total[rows, columns] += (units if clip is None else clip.of(units)) * np.int64(examples)

    def means(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each entry's weighted mean in units of 2**-32; zero where nobody has a column."""
        for name, total in self._sums.items():
            having = self._having.get(name)
            yield name, mean_fixed(total, max(1, self.examples) if having is None else np.maximum(having, 1))


def mean_fixed(total: NDArray[np.int64], divisor: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """total / divisor as integers, half to even: the same on every machine because nothing is a float."""
    divisor = np.asarray(divisor, np.int64)
    quotient, remainder = np.divmod(total, divisor)
    twice = 2 * remainder
    up = (twice > divisor) | ((twice == divisor) & (quotient & 1 == 1))
    return np.asarray(quotient + up, np.int64)


SCALE_BITS = 16
"""A factor on fixed-point numbers is a multiple of 2**-16."""


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
