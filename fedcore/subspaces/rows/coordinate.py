# SPDX-License-Identifier: Apache-2.0
"""Signed rows of the identity: a seed picks r of the n inputs, none twice.

Each input has a word of 64 bits. They are taken in the order of their words' upper 63 bits; the lowest bit is the sign.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ConfigError
from fedcore.subspaces.rows.stream import stream

__all__ = ["coordinate"]

_DOMAIN = b"fedkrso coordinate 1"


def coordinate(seed: int, layer: str, r: int, n: int) -> NDArray[np.int8]:
    """Rows (r, n), one entry of +1 or -1 in each.

    Raises:
        ConfigError: More rows than inputs.
    """
    words = np.frombuffer(stream(_DOMAIN, seed, layer, r, n, 8 * n), "<u8")
    if r > n:
        raise ConfigError(
            f"{r} of {n} inputs cannot be picked", place=layer, remedy="lower method.rank, or use another projection"
        )
    picked = np.argsort(words >> np.uint64(1), kind="stable")[:r]
    rows = np.zeros((r, n), np.int8)
    rows[np.arange(r), picked] = 1 - 2 * (words[picked] & np.uint64(1)).astype(np.int8)
    return rows
