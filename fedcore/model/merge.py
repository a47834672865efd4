# SPDX-License-Identifier: Apache-2.0
"""Merging what was learned into the base, exactly: finished subspaces, or products of stacked factors.

Z = sum over k of q_k R_k, with integers q of 15 bits and a sign and rows R of small integers (signs, or up to 127), is
an integer matrix product. While every partial sum stays below 2**24, float32 matrix multiplication is exact on any
device, in any summation order; beyond that bound float64 is, to 2**53 (`exact_rows` sees to it). Rows may have a
power of two each, and are brought to the smallest by shifts within the same bound. Then W += Z * c_row * scale of P
(for signs 1 / sqrt(r)) in two separate float32 elementwise operations (no fused multiply-add), which IEEE 754 fixes to
the last bit. Both sides run this one NumPy implementation.

A product up @ down of published factors (m, s) and (s, n) has integers of at most 15 bits on both sides. A row of `up`
has one power of two for all its terms; the rows of `down`, over which the terms are summed, have one each, so they are
brought to the smallest by shifts. With 15 + 15 + spread of those exponents + log2(s) <= 53 bits every partial sum is an
integer that float64 holds, in any order, with or without fused operations (`require_exact`; `finest_exponents` says how
fine `down` may be published). Then one rounding to float32, and one addition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ExactnessError
from fedcore.model.state import PublishedState
from fedcore.numbers.accumulator import FRACTION_BITS, RowScaled, row_exponents
from fedcore.round.training import COEFFICIENTS, DOWN, UP
from fedcore.subspaces.directions import change_of
from fedcore.subspaces.projection import Projection, projection_of
from fedcore.weights.schema import LayerSpec

__all__ = ["RowsOf", "exact_rows", "finest_exponents", "layer_change", "merge_update", "merged", "require_exact"]

_BLOCK_ROWS = 512
_NUMBER_BITS = 15
_FLOAT32_BITS = 24
_FLOAT64_BITS = 53

RowsOf = Callable[[slice], NDArray[np.float32]]


def layer_change(state: PublishedState, layer: LayerSpec) -> RowsOf:
    """What a merge of a state adds to a layer's weight, float32: a function that gives some rows of it, which do not
    depend on others.

    Raises:
        ExactnessError: The state has factors whose product would depend on the machine, or nothing that can be merged.
    """
    up, down = state.entries.get(layer.name + UP), state.entries.get(layer.name + DOWN)
    if up is not None and down is not None:
        return _product(up, down, layer.name)
    if (coefficients := state.entries.get(layer.name + COEFFICIENTS)) is not None:
        return change_of(coefficients, state.seeds[0], layer, 0)
    if layer.name not in state.entries or not state.seeds:
        raise ExactnessError("this state has nothing to merge", place=layer.name)
    return _merges(
        state.entries[layer.name],
        projection_of(state.rows_from, state.seeds, state.rank, layer.name, layer.columns),
        layer.name,
    )


def _product(up: RowScaled, down: RowScaled, place: str) -> RowsOf:
    require_exact(down, place)
    lowest = down.exponent.min(initial=127).astype(np.int32)
    right = np.ldexp(down.q.astype(np.float64), down.exponent.astype(np.int32)[:, None] - lowest)

    def some(rows: slice) -> NDArray[np.float32]:
        exponent = up.exponent[rows].astype(np.int32)[:, None] + lowest
        return np.asarray(np.ldexp(up.q[rows].astype(np.float64) @ right, exponent), np.float32)

    return some


def _spread_allowed(terms: int) -> int:
    return _FLOAT64_BITS - 2 * _NUMBER_BITS - max(0, terms - 1).bit_length()


def require_exact(down: RowScaled, place: str) -> None:
    """Check that sums over the rows of a right factor are exact.

    Raises:
        ExactnessError: Its scales are too far apart for their number.
    """
    if len(down.q) and int(down.exponent.max()) - int(down.exponent.min()) > _spread_allowed(len(down.q)):
        raise ExactnessError(f"the scales of {len(down.q)} rows are too far apart for an exact product", place=place)


def finest_exponents(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """The finest scales (s,) with which a right factor (s, n) in units of 2**-32 may be published.

    A row that is that much smaller than the largest is rounded more coarsely than 16 bits; its part of the product is
    smaller by as much."""
    absmax = np.abs(units).max(axis=1, initial=0).astype(np.float64) * 2.0**-FRACTION_BITS
    # One step of room: rounding may need the next scale.
    floor = row_exponents(absmax, 2**_NUMBER_BITS - 1).max(initial=-FRACTION_BITS) - (_spread_allowed(len(units)) - 1)
    return np.full(len(units), floor, np.int64)


def exact_rows(projection: Projection, place: str) -> tuple[NDArray[Any], int]:
    """P's integers (K r, n) in the float type in which products of 16-bit integers with them are exact, and their power
    of two.

    Raises:
        ExactnessError: A sum over them would be beyond what float64 holds exactly.
    """
    exponent = np.zeros(1, np.int32) if projection.exponent is None else projection.exponent.astype(np.int32)
    lowest = int(exponent.min())
    largest_sum = len(projection.rows) * projection.largest << (_NUMBER_BITS + int(exponent.max()) - lowest)
    if largest_sum > 2**_FLOAT64_BITS:
        raise ExactnessError(
            f"{len(projection.rows)} rows are too many, or too far apart in size, for exact sums", place=place
        )
    dtype = np.float32 if largest_sum < 2**_FLOAT32_BITS else np.float64
    return np.ldexp(projection.rows.astype(dtype), (exponent - lowest)[:, None]), lowest


def _merges(part: RowScaled, projection: Projection, place: str) -> RowsOf:
    (integers, lowest), scale = exact_rows(projection, place), np.float32(projection.scale)

    def some(rows: slice) -> NDArray[np.float32]:
        sums = part.q[rows].astype(integers.dtype) @ integers
        out: NDArray[np.float32] = np.ldexp(sums, lowest, out=sums).astype(np.float32, copy=False)
        out *= (part.scale()[rows] * scale)[:, None]
        return out

    return some


def merge_update(part: RowScaled, projection: Projection, place: str = "") -> NDArray[np.float32]:
    """The matrix sum over k of S_k P_k (m, n) of one layer, bit for bit the same everywhere.

    Args:
        part: The layer's published entry, int16 (m, K r).
        projection: Of the layer.
        place: Named in the error.
    """
    some, out = _merges(part, projection, place), np.empty((len(part.q), projection.rows.shape[1]), np.float32)
    for start in range(0, len(out), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        out[rows] = some(rows)
    return out


def merged(weight: NDArray[np.float32], update: NDArray[np.float32]) -> NDArray[np.float32]:
    """W + update, one float32 addition per entry."""
    return np.add(weight, update, dtype=np.float32)
