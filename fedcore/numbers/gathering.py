# SPDX-License-Identifier: Apache-2.0
"""Row-scaled integers of several participants, gathered in units of one scale a row: how a round's updates are added
without reading and writing its 64-bit sum once for each of them.

The gathered numbers are integers whatever holds them, and none is rounded: so neither the order nor the way that is
taken can change a bit of the sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcore.numbers.entries import RowScaled
from fedcore.numbers.fixed import block_rows

__all__ = ["Gather", "gather_of"]

_INT32: Final = 2**31
_EXACT_IN_FLOATS: Final = 2**24
# Of fewer, a call for each row costs more than it saves.
_PARTS_AS_FLOATS: Final = 6


class Gather(Protocol):
    """The sum of all parts, each times its factors, block by block."""

    def of(self, rows: slice) -> NDArray[Any]:
        """The sum in some rows of a block: integers, in (rows, c); good until the next call."""
        ...


def gather_of(parts: Sequence[RowScaled], factors: NDArray[np.int64], shape: tuple[int, ...], reach: float) -> Gather:
    """The quickest way that is exact: as float32 where no sum can reach 2**24, in 32 bits where none can be beyond
    those, else in 64.

    Args:
        parts: Of one shape (m, c).
        factors: Of each part's rows, (parts, m); more than zero.
        shape: (m, c).
        reach: No sum of any of the products is larger; below 2**63.

    Example:
        >>> part = RowScaled(np.array([[3, -4]], np.int8), np.zeros(1, np.int8))
        >>> gather_of([part, part], np.array([[1], [10]]), (1, 2), 44.0).of(slice(0, 1)).tolist()
        [[33, -44]]
    """
    if len(parts) >= _PARTS_AS_FLOATS and reach < _EXACT_IN_FLOATS:
        return _Products(parts, factors, shape)
    return _Additions(parts, factors, shape, np.int32 if reach < _INT32 else np.int64)


class _Additions:
    """One part after the other, in integers.

    Args:
        parts: Of one shape (m, c).
        factors: Of each part's rows, (parts, m).
        shape: (m, c).
        kind: Holds every sum: twice as many of 32 bits fit into a processor's register.
    """

    def __init__(self, parts: Sequence[RowScaled], factors: NDArray[np.int64], shape: tuple[int, ...], kind: Any):
        self._parts, self._factors = parts, factors.astype(kind)[:, :, None]
        room = (block_rows(shape), shape[1])
        self._gathered, self._scaled = np.empty(room, kind), np.empty(room, kind)

    def of(self, rows: slice) -> NDArray[Any]:
        count = rows.stop - rows.start
        target, more = self._gathered[:count], self._scaled[:count]
        for number, part in enumerate(self._parts):
            into = more if number else target
            # Widened first: a product of two types would be made number by number.
            np.copyto(into, part.q[rows])
            np.multiply(into, self._factors[number, rows], out=into)
            if number:
                np.add(target, more, out=target)
        return target


class _Products:
    """All parts of a row at once, as the product of its factors and its numbers, (1, parts) times (parts, c): integers
    below 2**24 in float32, which no order and no fused step can round.

    Args:
        parts: Of one shape (m, c).
        factors: Of each part's rows, (parts, m).
        shape: (m, c).
    """

    def __init__(self, parts: Sequence[RowScaled], factors: NDArray[np.int64], shape: tuple[int, ...]) -> None:
        self._parts, self._factors = parts, np.ascontiguousarray(factors.T, np.float32)[:, None, :]
        rows, columns = block_rows(shape), shape[1]
        self._numbers = np.empty((len(parts), rows, columns), np.float32)
        self._sums = np.empty((rows, 1, columns), np.float32)

    def of(self, rows: slice) -> NDArray[Any]:
        count = rows.stop - rows.start
        numbers, sums = self._numbers[:, :count], self._sums[:count]
        for number, part in enumerate(self._parts):
            np.copyto(numbers[number], part.q[rows])
        np.matmul(self._factors[rows], numbers.transpose(1, 0, 2), out=sums)
        return sums[:, 0]
