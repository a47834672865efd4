# SPDX-License-Identifier: Apache-2.0
"""Rows of normal numbers in 256 steps: a byte of the stream chooses one of as many quantiles, rounded to integers.

Quantile i is that of (i + 1/2) / 256, times 44, which brings the largest to 127. The table is written out: no library's
inverse of the normal distribution decides a bit of it. Its mean square is known exactly, and the scale follows from it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedcore.subspaces.rows.stream import stream

__all__ = ["GAUSSIAN_SQUARES", "QUANTILES", "gaussian"]

_DOMAIN = b"fedkrso gaussian 1"
# fmt: off
_UPPER: Final = (
    0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7, 7, 8, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 12, 13, 13, 14, 14,
    15, 15, 16, 16, 17, 17, 17, 18, 18, 19, 19, 20, 20, 21, 21, 22, 22, 23, 23, 24, 24, 25, 25, 26, 26, 27, 27, 28,
    28, 29, 29, 30, 30, 31, 32, 32, 33, 33, 34, 34, 35, 36, 36, 37, 37, 38, 39, 39, 40, 41, 41, 42, 43, 43, 44, 45,
    46, 46, 47, 48, 49, 49, 50, 51, 52, 53, 54, 55, 56, 56, 57, 59, 60, 61, 62, 63, 64, 65, 67, 68, 70, 71, 73, 75,
    77, 79, 81, 83, 86, 89, 93, 97, 103, 111, 127,
)
# fmt: on
QUANTILES: Final = tuple(-value for value in reversed(_UPPER)) + _UPPER
"""What each byte stands for, ascending."""
GAUSSIAN_SQUARES: Final = sum(value * value for value in QUANTILES)
"""256 E[entry^2]."""


def gaussian(seed: int, layer: str, r: int, n: int) -> NDArray[np.int8]:
    """Rows (r, n), one byte of the stream an entry."""
    table = np.array(QUANTILES, np.int8)
    return np.asarray(table[np.frombuffer(stream(_DOMAIN, seed, layer, r, n, r * n), np.uint8)].reshape(r, n), np.int8)
