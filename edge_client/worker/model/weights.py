# SPDX-License-Identifier: Apache-2.0
"""Frozen weight matrices that give out their rows in floating point, one block at a time.

A block of rows of W (m out, n in) is all that ever exists of an int8 weight in floating point. On two AVX-512 cores
dequantising costs below one percent of the product it serves at 1,024 tokens, so nothing is gained by keeping it. Nor
need the int8 weight itself be in memory: mapped from disk, its pages come when they are used and go again after each
product."""

from __future__ import annotations

import itertools
import math
import mmap
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fedcore.errors import ModelError

__all__ = [
    "FloatWeight",
    "Int8Weight",
    "PublishedWeight",
    "Scratch",
    "ShiftedWeight",
    "SparselyMovedWeight",
    "Weight",
    "release",
    "row_blocks",
    "tensor_of",
    "worth_running",
]


_Block = TypeVar("_Block")


def release(mapping: mmap.mmap | None) -> None:
    """Take a mapping's pages out of this process; the next use finds them in the page cache or on disk."""
    if mapping is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def tensor_of(numbers: NDArray[Any]) -> tuple[Tensor, mmap.mmap | None]:
    """Stored numbers as a tensor that shares their memory (uint16 is bfloat16), and the mapping they come from, if
    any."""
    with warnings.catch_warnings():
        # torch warns that a mapped array cannot be written; nothing writes it.
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(numbers)
    mapping = getattr(numbers, "_mmap", None)
    return tensor.view(torch.bfloat16) if numbers.dtype == np.uint16 else tensor, mapping


def row_blocks(rows: int, block_rows: int) -> Iterator[slice]:
    """Split `rows` into equal slices of at most `block_rows`."""
    count = max(1, -(-rows // block_rows))
    height = -(-rows // count)
    return (slice(start, min(start + height, rows)) for start in range(0, rows, max(1, height)))


def worth_running(blocks: Iterable[_Block], like: Tensor) -> list[_Block]:
    """Blocks that are worked on one after the other in the same buffers: all, but of a tensor that is only a shape the
    first two. What the second finds and leaves, each after it does."""
    return list(itertools.islice(blocks, 2 if isinstance(like, FakeTensor) else None))


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
            # Also where a state is measured: what is made in inference mode cannot be written again in training.
            with torch.inference_mode(False):
                self._buffers[key] = torch.empty(count, dtype=dtype, device=device)
        return self._buffers[key][:count].view(*shape)

    def clear(self) -> None:
        """Let go of all buffers: blocks are about to get smaller."""
        self._buffers.clear()


class Int8Weight(nn.Module):
    """A frozen W ~ q * scale[:, None], bitsandbytes' layout with scale = absmax / 127.

    Args:
        q: int8 (m, n).
        scale: float32 (m,).
        mapping: Where q is mapped from disk.

    Raises:
        ModelError: Shapes or dtypes do not fit together.
    """

    q: Tensor
    scale: Tensor

    def __init__(self, q: Tensor, scale: Tensor, mapping: mmap.mmap | None = None) -> None:
        super().__init__()
        self._mapping = mapping
        if q.dtype != torch.int8 or q.ndim != 2 or scale.dtype != torch.float32 or scale.shape != q.shape[:1]:
            raise ModelError(f"int8 weight {q.dtype} {tuple(q.shape)} with scale {scale.dtype} {tuple(scale.shape)}")
        self.register_buffer("q", q)
        self.register_buffer("scale", scale)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of W, (m, n)."""
        return self.q.shape[0], self.q.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        return self.q.device

    @property
    def mapped(self) -> bool:
        """Whether its pages come from disk and go again."""
        return self._mapping is not None

    def copy_rows(self, rows: slice, out: Tensor) -> Tensor:
        """Dequantise `rows` into `out` (rows, n) of any floating dtype."""
        return out.copy_(self.q[rows]).mul_(self.scale[rows, None].to(out.dtype))

    def release(self) -> None:
        """Let the kernel have the pages of a mapped weight until the next use; nothing where it is in memory."""
        release(self._mapping)


class FloatWeight(nn.Module):
    """A frozen W in floating point, behind the same interface.

    Args:
        weight: float32, bfloat16 or float16 (m, n).
        mapping: Where it is mapped from disk.

    Raises:
        ModelError: Not a floating-point matrix.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, mapping: mmap.mmap | None = None) -> None:
        super().__init__()
        self._mapping = mapping
        if weight.ndim != 2 or not weight.is_floating_point():
            raise ModelError(f"{weight.dtype} {tuple(weight.shape)} is not a floating-point matrix")
        self.register_buffer("weight", weight.detach())

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of W, (m, n)."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        return self.weight.device

    @property
    def mapped(self) -> bool:
        """Whether its pages come from disk and go again."""
        return self._mapping is not None

    def copy_rows(self, rows: slice, out: Tensor) -> Tensor:
        """Copy `rows` into `out` (rows, n) of any floating dtype."""
        return out.copy_(self.weight[rows])

    def release(self) -> None:
        """Let the kernel have the pages of a mapped weight until the next use; nothing where it is in memory."""
        release(self._mapping)


class _MovedWeight(nn.Module, ABC):
    """Abstract. A frozen W plus what was added to it, which stays in memory.

    Args:
        base: W (m, n).
        scratch: Buffers for blocks, shared by the layers of a model.
    """

    def __init__(self, base: Int8Weight | FloatWeight, scratch: Scratch | None) -> None:
        super().__init__()
        self.base = base
        self._scratch = scratch or Scratch()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of W, (m, n)."""
        return self.base.shape

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        return self.base.device

    @property
    def mapped(self) -> bool:
        """Whether its pages come from disk and go again; the change stays in memory."""
        return self.base.mapped

    @abstractmethod
    def copy_rows(self, rows: slice, out: Tensor) -> Tensor:
        """The sum's `rows` into `out` (rows, n) of any floating dtype."""

    def release(self) -> None:
        """Let the kernel have the pages of a mapped weight until the next use."""
        self.base.release()


class ShiftedWeight(_MovedWeight):
    """A frozen W plus a change in whole units, and for a while plus a step along a direction.

    Blocks are made as they are asked for: neither the sum nor the direction exists whole. The change does, 4 bytes a
        weight, from the start, so that calibration sees it before anything is learned.

    Args:
        base: W (m, n).
        unit: A power of two.
        scratch: Buffers for blocks, shared by the layers of a model.
    """

    change: Tensor

    def __init__(self, base: Int8Weight | FloatWeight, unit: float, scratch: Scratch | None = None) -> None:
        super().__init__(base, scratch)
        self.unit = unit
        self.step: tuple[float, Callable[[slice, NDArray[np.int8]], object]] | None = None
        """Length, and what writes some rows of the direction into an array."""
        # Written, so that its pages are there.
        self.register_buffer("change", torch.empty(base.shape, dtype=torch.int32, device=base.device).zero_())

    def add(self, rows: slice, adds: Callable[[NDArray[np.int32]], None]) -> None:
        """Have a function add to the change of some rows, int32 (rows, n), modulo 2**32."""
        if self.device.type == "cpu":
            adds(self.change[rows].numpy())
        else:
            more = np.zeros((rows.stop - rows.start, self.shape[1]), np.int32)
            adds(more)
            self.change[rows] += torch.from_numpy(more).to(self.device)

    def copy_rows(self, rows: slice, out: Tensor) -> Tensor:
        """The sum's `rows` into `out` (rows, n) of any floating dtype; added in float32, where a small step is not
        rounded away."""
        take = self._scratch.take
        total = out if out.dtype == torch.float32 else take("total", out.shape, torch.float32, out.device)
        self.base.copy_rows(rows, total)
        # The product is exact, a power of two: one rounding whether or not a processor fuses the two.
        total.add_(take("float", out.shape, torch.float32, out.device).copy_(self.change[rows]), alpha=self.unit)
        if self.step is not None:
            length, write = self.step
            direction = take("direction", out.shape, torch.int8, torch.device("cpu"))
            write(rows, direction.numpy())
            # As floats by ourselves: an addition of two types would take a new buffer for them each time.
            total.add_(take("float", out.shape, torch.float32, out.device).copy_(direction), alpha=length)
        return out if total is out else out.copy_(total)


class SparselyMovedWeight(_MovedWeight):
    """A frozen W plus numbers in some places of each row, which may train meanwhile.

    Args:
        base: W (m, n).
        places: int64 (m, k), different columns of each row.
        values: float32 (m, k), looked at whenever rows are made.
        scratch: Buffers for blocks, shared by the layers of a model.
    """

    places: Tensor

    def __init__(
        self, base: Int8Weight | FloatWeight, places: Tensor, values: nn.Parameter, scratch: Scratch | None = None
    ) -> None:
        super().__init__(base, scratch)
        self.register_buffer("places", places)
        # Of the layer's, which trains it: no parameter of a weight's.
        self._values = (values,)

    def copy_rows(self, rows: slice, out: Tensor) -> Tensor:
        """The sum's `rows` into `out` (rows, n) of any floating dtype; added in float32."""
        floats = out.dtype == torch.float32
        total = out if floats else self._scratch.take("total", out.shape, torch.float32, out.device)
        self.base.copy_rows(rows, total)
        total.scatter_add_(1, self.places[rows], self._values[0].detach()[rows])
        return out if floats else out.copy_(total)


class PublishedWeight(_MovedWeight):
    """A frozen W plus a change as it was published: integers with a power of two for each row.

    Args:
        base: W (m, n).
        scratch: Buffers for blocks, shared by the layers of a model.
    """

    q: Tensor | None
    scale: Tensor | None

    def __init__(self, base: Int8Weight | FloatWeight, scratch: Scratch | None = None) -> None:
        super().__init__(base, scratch)
        self.register_buffer("q", None, persistent=False)
        self.register_buffer("scale", None, persistent=False)

    def publish(self, q: NDArray[Any], exponent: NDArray[np.int8]) -> None:
        """Take a published change, integers (m, n) times 2**exponent (m,). It is shared, not copied, where W is in main
        memory."""
        self.q = self.scale = None
        if q.any():
            self.q = torch.from_numpy(q).to(self.device)
            self.scale = torch.from_numpy(np.ldexp(np.float32(1), exponent.astype(np.int32))).to(self.device)

    def copy_rows(self, rows: slice, out: Tensor) -> Tensor:
        """The sum's `rows` into `out` (rows, n) of any floating dtype; one addition in float32, as a merge's."""
        if self.q is None or self.scale is None:
            return self.base.copy_rows(rows, out)
        take = self._scratch.take
        total = out if out.dtype == torch.float32 else take("total", out.shape, torch.float32, out.device)
        change = take("float", out.shape, torch.float32, out.device).copy_(self.q[rows])
        self.base.copy_rows(rows, total).add_(change.mul_(self.scale[rows, None]))
        return out if total is out else out.copy_(total)


Weight = Int8Weight | FloatWeight | ShiftedWeight | SparselyMovedWeight | PublishedWeight
