# SPDX-License-Identifier: Apache-2.0
"""Quantisation of weights to int8: a pure function of the float matrix, the same bits on every machine.

Layout of bitsandbytes' 8-bit checkpoints: one absolute maximum per output row, W ~ q * scale[:, None] with scale =
absmax / 127. Ours rounds half to even in float32 with one division per entry, which IEEE 754 fixes to the last bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ModelError

__all__ = ["INT8_MAX", "dequantise_weight", "quantise_weight"]

INT8_MAX = 127


def quantise_weight(weight: NDArray[np.float32], *, place: str = "") -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round each row of W (m, n) to int8 with one scale per row.

    Returns:
        q int8 (m, n) in -127..127, and scale float32 (m,) with W ~ q * scale[:, None]. A zero row has scale 0.

    Raises:
        ModelError: W holds a value that is not finite; `place` names it.
    """
    absmax = np.abs(weight).max(axis=1) if weight.size else np.zeros(len(weight), np.float32)
    if not np.isfinite(absmax).all():
        raise ModelError("a weight is not finite", place=place, remedy="repair the checkpoint")
    scale = (absmax / np.float32(INT8_MAX)).astype(np.float32)
    # A row of zeros, or of subnormal numbers whose scale underflows, is all zero: divide by one instead.
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
    # rint is round half to even; the clip catches absmax / scale rounding up to 127.5 or more.
    q = np.clip(np.rint(weight / divisor), -INT8_MAX, INT8_MAX).astype(np.int8)
    return np.where(scale[:, None] > 0, q, np.int8(0)), scale


def dequantise_weight(q: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """q * scale[:, None] as float32 (m, n), one rounding per entry."""
    return q.astype(np.float32) * scale[:, None]
