# SPDX-License-Identifier: Apache-2.0
"""Folding finished subspaces into the base, exactly (only with refreshed seeds).

Z = sum over k of q_k S_k, with integers q and signs S in {+1, -1}, is an integer matrix product. While every partial sum
stays below 2**24, float32 matrix multiplication is exact on any device, in any summation order; beyond that bound float64 is, to
2**53. Then W += Z * c_row / sqrt(r) in two separate float32 elementwise operations (no fused multiply-add), which IEEE 754 fixes
to the last bit. Both sides run this one NumPy implementation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcore.accumulator import RowScaled
from fedcore.projection import signs

__all__ = ["fold_projection", "fold_rows", "fold_update", "folded", "projection_scale"]

_BLOCK_ROWS = 512


def projection_scale(rank: int) -> Any:
    """1 / sqrt(r) as the float32 that both sides multiply by."""
    return np.float32(1.0 / math.sqrt(rank))


def fold_projection(seeds: tuple[int, ...], rank: int, layer: str, columns: int) -> NDArray[Any]:
    """The signs of all seeds (K r, n), in the float type in which integer products with them are exact."""
    projection = np.concatenate([signs(seed, layer, rank, columns) for seed in seeds])
    return projection.astype(np.float32 if len(projection) * 2**15 < 2**24 else np.float64)


def fold_rows(part: RowScaled, projection: NDArray[Any], rank: int, rows: slice) -> NDArray[np.float32]:
    """Some rows of `fold_update`: they do not depend on each other.

    Args:
        part: The layer's published entry, int16 (m, K r).
        projection: `fold_projection` of the layer.
        rank: r.
        rows: Which.
    """
    factor = part.scale()[rows] * projection_scale(rank)
    out: NDArray[np.float32] = (part.q[rows].astype(projection.dtype) @ projection).astype(np.float32, copy=False)
    out *= factor[:, None]
    return out


def fold_update(part: RowScaled, seeds: tuple[int, ...], rank: int, layer: str, columns: int) -> NDArray[np.float32]:
    """The matrix sum over k of S_k P_k (m, n) of one layer, bit for bit the same everywhere.

    Args:
        part: The layer's published entry, int16 (m, K r).
        seeds: The pool.
        rank: r.
        layer: Canonical layer name.
        columns: n.
    """
    projection = fold_projection(seeds, rank, layer, columns)
    out = np.empty((len(part.q), columns), np.float32)
    for start in range(0, len(out), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        out[rows] = fold_rows(part, projection, rank, rows)
    return out


def folded(weight: NDArray[np.float32], update: NDArray[np.float32]) -> NDArray[np.float32]:
    """W + update, one float32 addition per entry."""
    return np.add(weight, update, dtype=np.float32)
