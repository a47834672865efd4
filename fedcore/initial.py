# SPDX-License-Identifier: Apache-2.0
"""First values of tensors that no checkpoint has, such as a new task head."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["initial_factor", "initial_tensor"]


def initial_tensor(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """A new head's first values: bytes of SHAKE-128 as integers times 2**-12 (standard deviation 0.018); biases are zero.

    Exact on every machine, like the projections, so that nobody has to send a head before the first round.
    """
    if len(shape) < 2:
        return np.zeros(shape, np.float32)
    count = math.prod(shape)
    shake = hashlib.shake_128(b"fedkrso head 1" + seed.to_bytes(8, "little") + name.encode())
    integers = np.frombuffer(shake.digest(count), np.int8).astype(np.float32)
    return np.asarray(integers * np.float32(2**-12)).reshape(shape)


def initial_factor(name: str, rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    """LoRA's first A (r, n): uniform within 1 / sqrt(n), the scale that PEFT draws; integers of SHAKE-128 times one float32.

    Example:
        >>> bool(abs(initial_factor("l/A", 4, 100, 0)).max() <= 0.1)
        True
    """
    shake = hashlib.shake_128(b"fedkrso factor 1" + seed.to_bytes(8, "little") + name.encode())
    integers = np.frombuffer(shake.digest(2 * rows * columns), "<i2").astype(np.float32)
    return np.asarray(integers * np.float32(1 / (32768 * math.sqrt(columns)))).reshape(rows, columns)
