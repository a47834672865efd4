# SPDX-License-Identifier: Apache-2.0
"""Matrices as they travel: row-scaled integers, and floats. Of both, what is summed are integers in units of 2**-32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["FRACTION_BITS", "VALUE_BITS", "Floats", "MatrixEntry", "RowScaled"]

FRACTION_BITS: Final = 32
VALUE_BITS: Final = 7
"""A number of an update is at most 2**7 (`fedcore.numbers.accumulator`)."""


class MatrixEntry(Protocol):
    """A matrix as it travelled. What is summed of it are integers in units of 2**-32."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, (m, c)."""
        ...

    def values(self) -> NDArray[np.float32]:
        """The numbers as float32 (m, c)."""
        ...

    def largest(self) -> int:
        """The largest size of a number in units of 2**-32; beyond 2**62 just that."""
        ...

    def units(self, rows: slice) -> NDArray[np.int64]:
        """Some rows in units of 2**-32; only of an entry within the bounds (`within_bounds`)."""
        ...


@dataclass(frozen=True)
class Floats:
    """Numbers that travelled as floats: for sums each is rounded to a multiple of 2**-32, half to even.

    Attributes:
        numbers: float32 (m, c), finite; bfloat16 ones widened.
    """

    numbers: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, (m, c)."""
        rows, columns = self.numbers.shape
        return rows, columns

    def values(self) -> NDArray[np.float32]:
        """The numbers, before they are rounded."""
        return self.numbers

    def largest(self) -> int:
        """The largest absolute value of all numbers, in units of 2**-32."""
        size = float(np.abs(self.numbers).max(initial=0))
        return round(math.ldexp(min(size, 2.0 ** (62 - FRACTION_BITS)), FRACTION_BITS))

    def units(self, rows: slice) -> NDArray[np.int64]:
        """float64 holds a float32 times 2**32 exactly, and so does rint."""
        return np.asarray(np.rint(np.ldexp(self.numbers[rows].astype(np.float64), FRACTION_BITS)), np.int64)


@dataclass(frozen=True)
class RowScaled:
    """Integers with one power-of-two scale per row: the matrix q * 2**exponent[:, None].

    Attributes:
        q: int16 (m, c), or int8 of what travelled in 4 or 8 bits; not to be written to.
        exponent: int8 (m,), -32 or more.
    """

    q: NDArray[np.int16] | NDArray[np.int8]
    exponent: NDArray[np.int8]

    @cached_property
    def extremes(self) -> tuple[int, int]:
        """The smallest and the largest integer, without scales; 0 is between them."""
        return int(self.q.min(initial=0)), int(self.q.max(initial=0))

    @property
    def most(self) -> int:
        """The largest size of an integer, without its scale."""
        return max(self.extremes[1], -self.extremes[0])

    def values(self) -> NDArray[np.float32]:
        """The matrix as float32 (m, c); exact, since a 16-bit integer times a power of two fits."""
        return np.asarray(np.ldexp(self.q.astype(np.float32), self.exponent.astype(np.int32)[:, None]), np.float32)

    def scale(self) -> NDArray[np.float32]:
        """2**exponent as float32 (m,)."""
        return np.asarray(np.ldexp(np.float32(1), self.exponent.astype(np.int32)), np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, (m, c)."""
        rows, columns = self.q.shape
        return rows, columns

    def largest(self) -> int:
        """The largest absolute value of all numbers, in units of 2**-32, by integers alone."""
        exponent = self.exponent.astype(np.int64)
        highest, lowest = self.q.max(axis=1, initial=0).astype(np.int64), self.q.min(axis=1, initial=0).astype(np.int64)
        size = np.maximum(highest, -lowest)
        if (exponent < -FRACTION_BITS).any() or (exponent > VALUE_BITS).any():
            return 2**62
        return int((size << (exponent + FRACTION_BITS)).max(initial=0))

    def units(self, rows: slice) -> NDArray[np.int64]:
        """Some rows in units of 2**-32, exactly."""
        return np.asarray(
            self.q[rows].astype(np.int64) << (self.exponent[rows].astype(np.int64) + FRACTION_BITS)[:, None]
        )
