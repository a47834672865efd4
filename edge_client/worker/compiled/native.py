# SPDX-License-Identifier: Apache-2.0
"""A model of Llama's shape in the hands of `llama.c`: tokens go through all layers in one call.

Legend: t tokens, n features, h heads, g key-value heads, d features a head, i features inside the MLP, v words.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_client.worker.compiled.kernel import Kernel, Matrix, floats
from fedcore.errors import ModelError

__all__ = ["LINEAR", "NativeCache", "NativeLlama", "Parts", "PartsBlock", "PartsLinear", "PartsNorm", "Rows"]

LINEAR: Final = ("query", "key", "value", "out", "gate", "up", "down")
"""A block's linear layers."""
_NORMS: Final = ("before_attention", "query_norm", "key_norm", "before_mlp")
_BUFFERS: Final = ("inner", "query", "key", "value", "seen", "gate", "up", "side", "scores")

_Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Rows:
    """W (m, n) as stored, times a factor for each row.

    Attributes:
        weight: Of a kind that `Kernel.takes`: in memory, or mapped from a file.
        scale: float32 (m,), or None for ones.
    """

    weight: NDArray[Any]
    scale: _Floats | None = None


@dataclass(frozen=True, eq=False)
class PartsLinear:
    """W x + bias + up (down x).

    Attributes:
        weight: W.
        bias: float32 (m,), or None.
        side: Down (k, n) and up (m, k) of what was learned, or None.
    """

    weight: Rows
    bias: _Floats | None = None
    side: tuple[Rows, Rows] | None = None


@dataclass(frozen=True, eq=False)
class PartsNorm:
    """An RMS norm: a factor for each feature, float32, and what is added to the mean of squares."""

    weight: _Floats
    epsilon: float


@dataclass(frozen=True, eq=False)
class PartsBlock:
    """A decoder layer's parts."""

    before_attention: PartsNorm
    query: PartsLinear
    key: PartsLinear
    value: PartsLinear
    query_norm: PartsNorm | None
    key_norm: PartsNorm | None
    out: PartsLinear
    before_mlp: PartsNorm
    gate: PartsLinear
    up: PartsLinear
    down: PartsLinear


@dataclass(frozen=True, eq=False)
class Parts:
    """A model's parts.

    Attributes:
        table: The embedding (v, n), floating point as stored.
        blocks: Its layers.
        norm: The last one.
        head: From the last hidden state to logits, (v, n).
        frequencies: float32 (d / 2,): by how much a head's features turn from one position to the next.
        angle_scale: Factor on cosines and sines.
        heads: h.
        key_heads: g.
        features: d.
        scaling: Factor on the products of queries and keys.
    """

    table: NDArray[Any]
    blocks: tuple[PartsBlock, ...]
    norm: PartsNorm
    head: PartsLinear
    frequencies: _Floats
    angle_scale: float
    heads: int
    key_heads: int
    features: int
    scaling: float

    @property
    def inner(self) -> int:
        """i."""
        return len(self.blocks[0].gate.weight.weight)

    @property
    def side_width(self) -> int:
        """Numbers between the two factors of the widest side path."""
        return max(len(linear.side[0].weight) if linear.side is not None else 0 for linear in self.linears())

    def linears(self) -> Iterator[PartsLinear]:
        """All of its blocks'."""
        return (getattr(block, name) for block in self.blocks for name in LINEAR)

    def embedded(self, ids: Sequence[int]) -> _Floats:
        """Embeddings (t, n) of tokens, a copy."""
        return np.array(floats(self.table[list(ids)]))

    def angles(self, seen: int, count: int) -> tuple[_Floats, _Floats]:
        """Cosines and sines (t, d) of `count` positions from `seen` on."""
        turned = np.arange(seen, seen + count).astype(np.float32)[:, None] * self.frequencies
        # In double precision the function itself rounds nothing away: the same numbers on every machine, nearly.
        wide = np.concatenate([turned, turned], axis=1).astype(np.float64)
        return (np.cos(wide) * self.angle_scale).astype(np.float32), (np.sin(wide) * self.angle_scale).astype(
            np.float32
        )

    def fits(self, kernel: Kernel) -> bool:
        """Whether the compiled pass can have it: weights of kinds that the kernel takes, and all layers alike."""
        (v, n), d, i = self.table.shape, self.features, self.inner
        heads, keys = self.heads * d, self.key_heads * d
        shapes = ((heads, n), (keys, n), (keys, n), (n, heads), (i, n), (i, n), (n, i))
        for block in self.blocks:
            for name, shape in zip(LINEAR, shapes, strict=True):
                if not _takes(kernel, getattr(block, name), shape):
                    return False
            sizes = {len(norm.weight) for norm in (block.query_norm, block.key_norm) if norm is not None}
            if sizes - {d} or {len(block.before_attention.weight), len(block.before_mlp.weight)} != {n}:
                return False
        table = self.table.dtype in (np.uint16, np.float16, np.float32) and self.frequencies.shape == (d // 2,)
        return table and _takes(kernel, self.head, (v, n)) and d % 2 == 0 and self.heads % self.key_heads == 0


def _takes(kernel: Kernel, linear: PartsLinear, shape: tuple[int, int]) -> bool:
    return linear.weight.weight.shape == shape and all(
        kernel.takes(rows.weight) for rows in (linear.weight, *(linear.side or ()))
    )


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("epsilon", ctypes.c_float))


class _Linear(ctypes.Structure):
    _fields_ = (("weight", Matrix), ("down", Matrix), ("up", Matrix), ("bias", ctypes.c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in _NORMS),
        *((name, _Linear) for name in LINEAR),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_ssize_t) for name in ("layers", "n", "h", "g", "d", "i")),
        ("scaling", ctypes.c_float),
        ("layer", ctypes.POINTER(_Layer)),
        ("norm", _Norm),
    )


class _Buffers(ctypes.Structure):
    _fields_ = (("tokens", ctypes.c_ssize_t), *((name, ctypes.c_void_p) for name in _BUFFERS))


class _Cache(ctypes.Structure):
    _fields_ = (("room", ctypes.c_ssize_t), ("keys", ctypes.c_void_p), ("values", ctypes.c_void_p))


class NativeCache:
    """Keys and values of what has been seen, float32 (layers, g, room, d). Pages that no token has reached yet take no
    memory.

    Args:
        parts: The model's.
        room: Tokens that there is room for.
    """

    def __init__(self, parts: Parts, room: int) -> None:
        self.room = room
        self.length = 0
        """Tokens that have been seen."""
        shape = (len(parts.blocks), parts.key_heads, room, parts.features)
        self.keys, self.values = _untouched(shape), _untouched(shape)
        self.structure = _Cache(room, self.keys.ctypes.data, self.values.ctypes.data)


def _untouched(shape: tuple[int, ...]) -> _Floats:
    """Numbers in pages that take no memory before they are written: small pages, since NumPy would ask for large ones,
    of which the first token of each head would take one."""
    memory = mmap.mmap(-1, 4 * max(1, math.prod(shape)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # A kernel without large pages refuses.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.float32, math.prod(shape)).reshape(shape)


class NativeLlama:
    """A model's pass, compiled.

    Args:
        parts: The model's; they must fit (`Parts.fits`).
        kernel: What has been compiled.
    """

    def __init__(self, parts: Parts, kernel: Kernel) -> None:
        self.parts, self._kernel = parts, kernel
        # What the structures point to.
        self._kept: list[NDArray[Any]] = []
        self._layers = (_Layer * len(parts.blocks))(*map(self._layer, parts.blocks))
        sizes = (parts.table.shape[1], parts.heads, parts.key_heads, parts.features, parts.inner)
        self._model = _Model(len(parts.blocks), *sizes, parts.scaling, self._layers, self._norm(parts.norm))
        self._buffers, self._buffered, self._room = _Buffers(), list[_Floats](), 0

    def cache(self, room: int) -> NativeCache:
        """An empty cache for so many tokens."""
        return NativeCache(self.parts, room)

    def __call__(self, ids: Sequence[int], cache: NativeCache, threads: int = 1) -> _Floats:
        """The last hidden state (1, n) of the next tokens, whose keys and values are added to the cache.

        Raises:
            ModelError: The cache has no room for them.
        """
        seen, count = cache.length, len(ids)
        if count > self._buffers.tokens or cache.room > self._room:
            self._make_buffers(max(count, self._buffers.tokens), max(cache.room, self._room))
        x, (cos, sin) = self.parts.embedded(ids), self.parts.angles(seen, count)
        last = np.empty((1, x.shape[1]), np.float32)
        structures = map(ctypes.byref, (self._model, self._buffers, cache.structure))
        numbers = (array.ctypes.data for array in (x, cos, sin, last))
        if self._kernel.llama_pass(*structures, *numbers, count, seen, threads):
            raise ModelError(f"{seen + count:,} tokens; the cache has room for {cache.room:,}")
        cache.length = seen + count
        return last

    def logits(self, hidden: _Floats, threads: int = 1) -> _Floats:
        """Logits (v,) of a last hidden state (1, n)."""
        head = self.parts.head
        out = np.zeros((1, len(head.weight.weight)), np.float32)
        if head.bias is not None:
            out += head.bias
        self._kernel.product(head.weight.weight, head.weight.scale, hidden, out, add=True, threads=threads)
        return np.asarray(out[0])

    def _make_buffers(self, tokens: int, room: int) -> None:
        parts, n, i = self.parts, self.parts.table.shape[1], self.parts.inner
        heads, keys = parts.heads * parts.features, parts.key_heads * parts.features
        shapes = [(tokens, size) for size in (n, heads, keys, keys, heads, i, i, parts.side_width)]
        self._buffered = [np.empty(shape, np.float32) for shape in (*shapes, (parts.heads, room))]
        self._buffers, self._room = _Buffers(tokens, *(buffer.ctypes.data for buffer in self._buffered)), room

    def _layer(self, block: PartsBlock) -> _Layer:
        norms = {name: self._norm(norm) for name in _NORMS if (norm := getattr(block, name)) is not None}
        return _Layer(**norms, **{name: self._linear(getattr(block, name)) for name in LINEAR})

    def _linear(self, linear: PartsLinear) -> _Linear:
        sides = (Matrix(), Matrix()) if linear.side is None else tuple(map(self._matrix, linear.side))
        return _Linear(self._matrix(linear.weight), *sides, None if linear.bias is None else self._at(linear.bias))

    def _matrix(self, rows: Rows) -> Matrix:
        self._kept += [rows.weight] if rows.scale is None else [rows.weight, rows.scale]
        return Matrix.of(rows.weight, rows.scale)

    def _norm(self, norm: PartsNorm) -> _Norm:
        return _Norm(self._at(norm.weight), norm.epsilon)

    def _at(self, numbers: _Floats) -> int:
        self._kept.append(np.ascontiguousarray(numbers, np.float32))
        return self._kept[-1].ctypes.data
