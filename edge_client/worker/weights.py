# SPDX-License-Identifier: Apache-2.0
"""Frozen weight matrices that give out their rows in floating point, one block at a time.

A block of rows of W (m out, n in) is all that ever exists of an int8 weight in floating point. On two AVX-512 cores
dequantising costs below one percent of the product it serves at 1,024 tokens, so nothing is gained by keeping it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fedcore.errors import ModelError

__all__ = ["FloatWeight", "Int8Weight", "Scratch", "Weight", "row_blocks"]


def row_blocks(rows: int, block_rows: int) -> Iterator[slice]:
    """Split `rows` into equal slices of at most `block_rows`."""
    count = max(1, -(-rows // block_rows))
    height = -(-rows // count)
    return (slice(start, min(start + height, rows)) for start in range(0, rows, max(1, height)))


class Scratch:
    """Buffers that many layers use in turn, so that blocks of weights do not come and go through the allocator.

    Pass one to all layers of a model; it grows to the largest block. Not for two threads at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, use: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor, valid until the next call for the same use."""
        key, count = (use, dtype, device), math.prod(shape)
        if key in self._buffers and self._buffers[key].numel() < count:
            # The old buffer goes before the new one comes: both at once would be a peak.
            del self._buffers[key]
        if key not in self._buffers:
            self._buffers[key] = torch.empty(count, dtype=dtype, device=device)
        return self._buffers[key][:count].view(*shape)


class Int8Weight(nn.Module):
    """A frozen W ~ q * scale[:, None], bitsandbytes' layout with scale = absmax / 127.

    Args:
        q: int8 (m, n).
        scale: float32 (m,).

    Raises:
        ModelError: Shapes or dtypes do not fit together.
    """

    q: Tensor
    scale: Tensor

    def __init__(self, q: Tensor, scale: Tensor) -> None:
        super().__init__()
        if q.dtype != torch.int8 or q.ndim != 2 or scale.dtype != torch.float32 or scale.shape != q.shape[:1]:
            raise ModelError(f"int8 weight {q.dtype} {tuple(q.shape)} with scale {scale.dtype} {tuple(scale.shape)}")
        self.register_buffer("q", q)
        self.register_buffer("scale", scale)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.q.shape[0], self.q.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        return self.q.device

    def copy_rows(self, rows: slice, out: Tensor) -> Tensor:
        """Dequantise `rows` into `out` (rows, n) of any floating dtype."""
        return out.copy_(self.q[rows]).mul_(self.scale[rows, None].to(out.dtype))


class FloatWeight(nn.Module):
    """A frozen W in floating point, behind the same interface.

    Args:
        weight: float32, bfloat16 or float16 (m, n).

    Raises:
        ModelError: Not a floating-point matrix.
    """

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        if weight.ndim != 2 or not weight.is_floating_point():
            raise ModelError(f"{weight.dtype} {tuple(weight.shape)} is not a floating-point matrix")
        self.register_buffer("weight", weight.detach())

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        return self.weight.device

    def copy_rows(self, rows: slice, out: Tensor) -> Tensor:
        """Copy `rows` into `out` (rows, n) of any floating dtype."""
        return out.copy_(self.weight[rows])


Weight = Int8Weight | FloatWeight
