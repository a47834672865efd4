# SPDX-License-Identifier: Apache-2.0
"""Which numbers of a layer's weight a sparse round trains: as many in each row, the same for everybody, from the run's
seed, so that no position ever travels.

Row i's columns are split into k strips of equal width, up to one, and each strip gives one: k different columns,
ascending. The stream of 64 rows is SHAKE-128 of seed, layer and their number: 32 bits a position."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["positions", "scattered"]

_ROWS: Final = 64


def positions(seed: int, layer: str, rows: int, columns: int, k: int) -> NDArray[np.int32]:
    """Columns (rows, k) of the numbers that train, ascending in each row.

    Example:
        >>> positions(0, "l", 2, 12, 3).tolist()
        [[3, 7, 8], [0, 5, 9]]
    """
    edges = np.arange(k + 1, dtype=np.int64) * columns // k
    out = np.empty((rows, k), np.int32)
    for start in range(0, rows, _ROWS):
        height = min(_ROWS, rows - start)
        head = b"fedkrso sparse 1" + seed.to_bytes(8, "little") + (start // _ROWS).to_bytes(4, "little")
        drawn = hashlib.shake_128(head + layer.encode()).digest(4 * height * k)
        numbers = np.frombuffer(drawn, "<u4").astype(np.int64).reshape(height, k)
        out[start : start + height] = edges[:-1] + numbers % np.diff(edges)
    return out


def scattered(values: NDArray[np.float64], places: NDArray[np.int32], columns: int) -> NDArray[np.float64]:
    """The matrix (m, n) that has values (m, k) in their places, and zeros elsewhere.

    Example:
        >>> scattered(np.array([[2.0]]), np.array([[1]], np.int32), 3).tolist()
        [[0.0, 2.0, 0.0]]
    """
    out = np.zeros((len(values), columns))
    np.put_along_axis(out, places.astype(np.int64), values, axis=1)
    return out
