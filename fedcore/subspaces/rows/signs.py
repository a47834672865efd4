# SPDX-License-Identifier: Apache-2.0
"""Rows of +1 and -1: one random bit an entry, and of all entries with E[P^T P] = I the least spread."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcore.subspaces.rows.stream import stream

__all__ = ["sign_bytes", "signs"]

_DOMAIN = b"fedkrso projection 1"


def sign_bytes(seed: int, layer: str, r: int, n: int) -> bytes:
    """The r x ceil(n / 8) bytes that hold the signs, least significant bit first, bit 1 for -1.

    Args:
        seed: Names the subspace, 0 to 2**64 - 1.
        layer: The layer's canonical name; each layer has signs of its own.
        r: Rank, rows of P.
        n: Input features, columns of P; the padding bits of each row's last byte are unused.

    Raises:
        ConfigError: A seed, rank or width outside its range.
    """
    return stream(_DOMAIN, seed, layer, r, n, r * -(-n // 8))


def signs(seed: int, layer: str, r: int, n: int) -> NDArray[np.int8]:
    """P's signs as int8 (r, n), entries +1 and -1.

    Example:
        >>> signs(7, "encoder.layer.0.output.dense", 2, 5).shape
        (2, 5)
    """
    packed = np.frombuffer(sign_bytes(seed, layer, r, n), dtype=np.uint8).reshape(r, -1)
    bits = np.unpackbits(packed, axis=1, count=n, bitorder="little")
    bits *= 2
    return np.asarray(1 - bits.view(np.int8), np.int8)
