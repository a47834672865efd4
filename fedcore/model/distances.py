# SPDX-License-Identifier: Apache-2.0
"""Squared distances between updates, exactly, from blocks of them.

Of integers in units of 2**-32 (|a| <= 2**39) sums of products need up to 112 bits. They are made by matrix products in
float64 that are exact, whatever the order in which a library adds: numbers are cut so that no sum of a product is
beyond 2**52, and so every partial sum is an integer that float64 holds. Numbers that travelled in 4 or 8 bits mostly
take one product, since with the zeros that they all end in shifted away they are below 2**19; others are cut into two
halves and take three.

It costs a multiplication for each number and two updates, or three, and some 100 bytes of memory for two updates."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedcore.numbers.choosing import Distances

__all__ = ["Products"]

_HALF_BITS: Final = 20
_CHUNK_NUMBERS: Final = 2**14
"""2**14 products of numbers of up to 2**19 are at most 2**52."""
_MOST_ADDED: Final = 2**10
_MOST_SHIFTS: Final = 4


class Products:
    """Sums of products of all pairs of updates.

    Args:
        updates: How many.

    Example:
        >>> products = Products(2)
        >>> products.add(np.array([[2**39, 0], [-(2**39), 3]]))
        >>> products.distances()[0][1] == (2**40) ** 2 + 3**2
        True
    """

    def __init__(self, updates: int) -> None:
        self._whole = np.zeros((updates, updates), object)
        self._sums: dict[int, tuple[NDArray[np.int64], int]] = {}

    def add(self, values: NDArray[np.int64]) -> None:
        """Take in some numbers of all updates.

        Args:
            values: (updates, numbers), |a| <= 2**39.
        """
        for start in range(0, values.shape[1], _CHUNK_NUMBERS):
            self._add(values[:, start : start + _CHUNK_NUMBERS])

    def distances(self) -> Distances:
        """Of each update to each, squared, in units of 2**-64."""
        for shift in list(self._sums):
            self._empty(shift)
        squares = [int(row[own]) for own, row in enumerate(self._whole)]
        return [
            [squares[one] + squares[other] - 2 * int(product) for other, product in enumerate(row)]
            for one, row in enumerate(self._whole)
        ]

    def _add(self, values: NDArray[np.int64]) -> None:
        used = int(np.bitwise_or.reduce(np.abs(values), axis=None))
        if not used:
            return
        zeros = (used & -used).bit_length() - 1
        if used.bit_length() - zeros < _HALF_BITS:
            small = (values >> np.int64(zeros)).astype(np.float64)
            self._put(small @ small.T, 2 * zeros)
            return
        high = (values + np.int64(1 << _HALF_BITS - 1)) >> np.int64(_HALF_BITS)
        low = (values - (high << np.int64(_HALF_BITS))).astype(np.float64)
        upper = high.astype(np.float64)
        mixed = upper @ low.T
        self._put(upper @ upper.T, 2 * _HALF_BITS)
        self._put(mixed + mixed.T, _HALF_BITS)
        self._put(low @ low.T, 0)

    def _put(self, products: NDArray[np.float64], shift: int) -> None:
        """Up to 2**10 of at most 2**53 together are exact in 64 bits."""
        if shift in self._sums and self._sums[shift][1] == _MOST_ADDED - 1:
            self._empty(shift)
        if shift not in self._sums and len(self._sums) == _MOST_SHIFTS:
            self._empty(next(iter(self._sums)))
        held, times = self._sums.get(shift, (np.zeros(products.shape, np.int64), 0))
        held += products.astype(np.int64)
        self._sums[shift] = held, times + 1

    def _empty(self, shift: int) -> None:
        held, _ = self._sums.pop(shift)
        self._whole += held.astype(object) << shift
