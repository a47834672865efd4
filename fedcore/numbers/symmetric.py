# SPDX-License-Identifier: Apache-2.0
"""Symmetric matrices as one half of their numbers, in a rectangle: of n (n + 1) / 2 numbers none travels twice.

Row i of the upper half has n - i numbers, row n - 1 - i has i + 1: together n + 1, a row of the rectangle. Of an odd n
the middle row lies alone, with zeros after it.

    0123      0123 9        n = 4: rows 0 and 3, rows 1 and 2
     456  ->  456 78
      78
       9
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import MalformedMessage
from fedcore.numbers.coding import packed_shape

__all__ = ["pack_rows", "unpacked"]


def pack_rows(side: int, row: Callable[[int], NDArray[Any]], dtype: Any = np.float64) -> NDArray[Any]:
    """Pack a symmetric matrix that need not be there whole.

    Args:
        side: Its rows, n.
        row: Gives the numbers of row i from the diagonal on, (n - i,).
        dtype: Of the result.

    Returns:
        (ceil(n / 2), n + 1).

    Example:
        >>> whole = np.array([[1, 2], [2, 3]])
        >>> pack_rows(2, lambda i: whole[i, i:], np.int64).tolist()
        [[1, 2, 3]]
    """
    out = np.zeros(packed_shape(side), dtype)
    for i in range(side):
        mirror = side - 1 - i
        if i <= mirror:
            out[i, : side - i] = row(i)
        else:
            out[mirror, side - mirror :] = row(i)
    return out


def unpacked(packed: NDArray[Any]) -> NDArray[Any]:
    """The whole matrix (n, n).

    Args:
        packed: (ceil(n / 2), n + 1).

    Raises:
        MalformedMessage: Not such a rectangle.
    """
    side = packed.shape[1] - 1
    if packed.shape != packed_shape(side):
        raise MalformedMessage(f"{packed.shape[0]} x {packed.shape[1]} numbers are no half of a symmetric matrix")
    whole = np.zeros((side, side), packed.dtype)
    for i in range(side):
        mirror = side - 1 - i
        found = packed[i, : side - i] if i <= mirror else packed[mirror, side - mirror :]
        whole[i, i:] = whole[i:, i] = found
    return whole
