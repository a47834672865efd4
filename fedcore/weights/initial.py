# SPDX-License-Identifier: Apache-2.0
"""What trained tensors hold before the first round: the checkpoint's numbers, or first values of what no checkpoint
has, as a new head."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from fedcore.weights.checkpoint import Tensors, to_float32
from fedcore.weights.schema import AdapterTensor, TensorSpec

__all__ = ["initial_adapter", "initial_factor", "initial_tensor", "row_lengths", "start_value"]


def start_value(checkpoint: Tensors, spec: TensorSpec, run_seed: int) -> NDArray[np.float32]:
    """A trained tensor's value before the first round.

    Raises:
        ModelError: The checkpoint should have it, and does not.
    """
    if spec.in_checkpoint:
        return to_float32(checkpoint.read(spec.name), checkpoint.tensors[spec.name].dtype)
    return initial_tensor(spec.name, spec.shape, run_seed, bias=spec.start)


def initial_tensor(name: str, shape: tuple[int, ...], seed: int, *, bias: float = 0.0) -> NDArray[np.float32]:
    """A new head's first values: bytes of SHAKE-128 as integers times 2**-12 (standard deviation 0.018), or a bias.

    Exact on every machine, like the projections, so that nobody has to send a head before the first round.

    Example:
        >>> initial_tensor("classifier.bias", (1,), 0, bias=2.5)
        array([2.5], dtype=float32)
    """
    if len(shape) < 2:
        return np.full(shape, bias, np.float32)
    count = math.prod(shape)
    shake = hashlib.shake_128(b"fedkrso head 1" + seed.to_bytes(8, "little") + name.encode())
    integers = np.frombuffer(shake.digest(count), np.int8).astype(np.float32)
    return np.asarray(integers * np.float32(2**-12)).reshape(shape)


def initial_factor(name: str, rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    """LoRA's first A (r, n): uniform within 1 / sqrt(n), the scale that PEFT draws; integers of SHAKE-128 times one
    float32.

    Example:
        >>> bool(abs(initial_factor("l/A", 4, 100, 0)).max() <= 0.1)
        True
    """
    shake = hashlib.shake_128(b"fedkrso factor 1" + seed.to_bytes(8, "little") + name.encode())
    integers = np.frombuffer(shake.digest(2 * rows * columns), "<i2").astype(np.float32)
    return np.asarray(integers * np.float32(1 / (32768 * math.sqrt(columns)))).reshape(rows, columns)


def initial_adapter(spec: AdapterTensor, seed: int) -> NDArray[np.float32]:
    """An adapter's tensor before the first round: one number everywhere, or integers of SHAKE-128 times one float32.

    Not of one that holds lengths of rows (`row_lengths`).

    Example:
        >>> initial_adapter(AdapterTensor("l/ia3_l", (2, 1), start=1.0), 0).tolist()
        [[1.0], [1.0]]
        >>> bool(abs(initial_adapter(AdapterTensor("l/a", (4, 100), spread=0.5), 0)).max() <= 0.5)
        True
    """
    if not spec.spread:
        return np.full(spec.shape, spec.start, np.float32)
    shake = hashlib.shake_128(b"fedkrso adapter 1" + seed.to_bytes(8, "little") + spec.name.encode())
    integers = np.frombuffer(shake.digest(2 * math.prod(spec.shape)), "<i2").astype(np.float32)
    return np.asarray(integers * np.float32(spec.spread / 32768)).reshape(spec.shape)


def row_lengths(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Euclidean lengths (m,) of the rows of W (m, n): squares added from left to right in float64, which is the same on
    every machine.

    Example:
        >>> row_lengths(np.array([[3.0, 4.0]], np.float32))
        array([5.], dtype=float32)
    """
    squares = np.square(rows, dtype=np.float64)
    # An accumulation has one order; a sum may take another on another processor.
    total = np.add.accumulate(squares, axis=1)[:, -1]
    return np.sqrt(total).astype(np.float32)
