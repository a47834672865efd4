# SPDX-License-Identifier: Apache-2.0
"""First values of tensors that no checkpoint has, such as a new task head."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["initial_tensor"]


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
