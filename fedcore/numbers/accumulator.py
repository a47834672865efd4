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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import UpdateRefused
from fedcore.fields.types import Bits
from fedcore.numbers.clip import CLIP_BITS, LARGEST_SHIFT, Clip
from fedcore.numbers.entries import FRACTION_BITS, VALUE_BITS, Floats, MatrixEntry, RowScaled
from fedcore.numbers.fixed import SCALE_BITS, block_rows, blocks, mean_fixed, scaled_fixed
from fedcore.numbers.gathering import gather_of

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
    "Share",
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
_INT32 = 2**31


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
    most = 1 << (FRACTION_BITS + VALUE_BITS)
    if isinstance(part, RowScaled) and part.q.size:
        # Nearly always the largest number would be within at the largest of all scales, and no row need be looked at.
        lowest, highest = int(part.exponent.min()), int(part.exponent.max())
        scales = lowest >= -FRACTION_BITS and highest <= VALUE_BITS
        if scales and part.most << (highest + FRACTION_BITS) <= most:
            return True
    return part.largest() <= most


def squared_norm(part: MatrixEntry) -> int:
    """The sum of squares in units of 2**-64: an exact integer, the same for any order of rows, entries and machines.

    Args:
        part: Within the bounds (`within_bounds`), of at most 2**32 numbers: rows of one exponent are summed as int64.

    Example:
        >>> squared_norm(quantise_rows(np.array([[3.0, 4.0]], np.float32), 8)) == 25 * 2**64
        True
    """
    if not isinstance(part, RowScaled):
        return sum(_squares(part.units(rows)) for rows in blocks(part.shape))
    squares = np.empty(len(part.q), np.int64)
    narrow = part.most**2 * part.q.shape[1] < _INT32
    for rows in blocks(part.shape):
        q: NDArray[Any] = part.q[rows].astype(np.int32 if narrow else np.int64)
        squares[rows] = np.einsum("ij,ij->i", q, q)
    return sum(int(squares[part.exponent == e].sum()) << 2 * (int(e) + FRACTION_BITS) for e in np.unique(part.exponent))


def _squares(units: NDArray[np.int64]) -> int:
    """Of numbers of up to 2**39, as high and low halves: no sum of products of a block reaches 2**63."""
    half = np.int64(20)
    high, low = np.abs(units) >> half, np.abs(units) & (2**20 - 1)
    parts = ((high, high, 40), (high, low, 21), (low, low, 0))
    return sum(sum(map(int, np.einsum("ij,ij->i", one, other))) << shift for one, other, shift in parts)


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


class Share(NamedTuple):
    """What a participant adds to an entry of a sum.

    Attributes:
        part: Within the bounds (`within_bounds`).
        weight: The participant's.
        columns: The part's columns within the entry.
        clip: Scales the part down first.
    """

    part: MatrixEntry
    weight: int
    columns: NDArray[np.intp] | slice = slice(None)
    clip: Clip | None = None


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
        self.add_together(name, (Share(part, examples, columns, clip),))

    def add_together(self, name: str, shares: Sequence[Share]) -> None:
        """Add what several participants say of entry `name`: the sum is that of one after the other, and is there
        sooner, since the entry's own numbers are read and written once.

        Args:
            name: The entry.
            shares: Of distinct participants, in any order.
        """
        total, having = self._sums[name], self._having.get(name)
        alike: dict[tuple[int | None, int | None], list[Share]] = {}
        for share in shares:
            if having is not None:
                having[share.columns] += share.weight
            if share.clip is None and isinstance(share.part, RowScaled) and isinstance(share.columns, slice):
                alike.setdefault((share.columns.start, share.columns.stop), []).append(share)
                continue
            for rows in blocks(share.part.shape):
                units = share.part.units(rows)
                units = units if share.clip is None else share.clip.of(units)
                total[rows, share.columns] += units * np.int64(share.weight)
        for (start, stop), those in alike.items():
            # The usual case.
            parts = [share.part for share in those if isinstance(share.part, RowScaled)]
            _add_scaled(total[:, start:stop], parts, [share.weight for share in those])

    def take(self, name: str, total: NDArray[np.int64], having: NDArray[np.int64] | None = None) -> None:
        """Add what another sum of the same round has of entry `name`: of other participants, whose examples are counted
        here.

        Args:
            name: The entry.
            total: As `sums` has it.
            having: As `having` has it.
        """
        self._sums[name] += total
        if having is not None:
            self._having[name] += having

    @property
    def having(self) -> Mapping[str, NDArray[np.int64]]:
        """Of entries whose mean is by column: how much those weigh together who have each column."""
        return self._having

    def sums(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each entry's weighted sum in units of 2**-32, which is not to be changed."""
        yield from self._sums.items()

    def means(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each entry's weighted mean in units of 2**-32; zero where nobody has a column."""
        for name, total in self._sums.items():
            having = self._having.get(name)
            yield name, mean_fixed(total, max(1, self.examples) if having is None else np.maximum(having, 1))


def _add_scaled(total: NDArray[np.int64], parts: Sequence[RowScaled], weights: Sequence[int]) -> None:
    """Add the parts, each times its weight, to as many rows and columns (m, c).

    A row of all parts is first gathered in units of the smallest of its scales (`fedcore.numbers.gathering`)."""
    exponents = np.stack([part.exponent for part in parts]).astype(np.int64)  # (parts, m)
    lowest = exponents.min(axis=0)
    factors = np.array(weights, np.int64)[:, None] << (exponents - lowest)
    # Of float64 numbers below 2**53 sums are exact; beyond, they need only be large.
    reach = (factors * np.array([part.most for part in parts], np.float64)[:, None]).sum(axis=0).max(initial=0)
    gather = gather_of(parts, factors, total.shape, reach)
    shifts, wide = (lowest + FRACTION_BITS)[:, None], np.empty((block_rows(total.shape), total.shape[1]), np.int64)
    for rows in blocks(total.shape):
        units = wide[: rows.stop - rows.start]
        np.copyto(units, gather.of(rows), casting="unsafe")
        np.left_shift(units, shifts[rows], out=units)
        total[rows] += units
