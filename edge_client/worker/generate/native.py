# SPDX-License-Identifier: Apache-2.0
"""A model of Llama's shape in the hands of `llama.c`: tokens go through all layers in one call.

Legend: t tokens, n features, h heads, g key-value heads, d features a head, i features inside the MLP.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from edge_client.worker.generate.kernel import Kernel, Matrix
from edge_client.worker.generate.llama import Block, LlamaParts, Norm
from edge_client.worker.generate.products import LinearProduct, StoredMatrix
from fedcore.errors import ModelError

__all__ = ["NativeCache", "NativeLlama", "native_llama"]

_LINEAR = ("query", "key", "value", "out", "gate", "up", "down")
_NORMS = ("before_attention", "query_norm", "key_norm", "before_mlp")
_BUFFERS = ("inner", "query", "key", "value", "seen", "gate", "up", "side", "scores")


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("epsilon", ctypes.c_float))


class _Linear(ctypes.Structure):
    _fields_ = (("weight", Matrix), ("down", Matrix), ("up", Matrix), ("bias", ctypes.c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in _NORMS),
        *((name, _Linear) for name in _LINEAR),
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

    def __init__(self, parts: LlamaParts, room: int) -> None:
        self.room = room
        self.length = 0
        """Tokens that have been seen."""
        shape = (len(parts.blocks), parts.key_heads, room, parts.features)
        self.keys, self.values = torch.empty(shape), torch.empty(shape)
        self.structure = _Cache(room, self.keys.data_ptr(), self.values.data_ptr())

    def crop(self, tokens: int) -> None:
        """Forget the last ones: a number up to zero, as transformers' caches have it."""
        self.length += tokens


class NativeLlama:
    """A model's pass, compiled.

    Args:
        parts: The model's, of which `native_llama` has seen that they fit.
        kernel: What has been compiled.
    """

    def __init__(self, parts: LlamaParts, kernel: Kernel) -> None:
        self._parts, self._kernel = parts, kernel
        # What the structures point to.
        self._kept: list[Tensor] = []
        self._layers = (_Layer * len(parts.blocks))(*map(self._layer, parts.blocks))
        sizes = (parts.norm.weight.numel(), parts.heads, parts.key_heads, parts.features, parts.inner)
        self._model = _Model(len(parts.blocks), *sizes, parts.scaling, self._layers, self._norm(parts.norm))
        self._buffers, self._buffered, self._room = _Buffers(), list[Tensor](), 0

    def cache(self, room: int) -> NativeCache:
        """An empty cache for so many tokens."""
        return NativeCache(self._parts, room)

    def __call__(self, ids: Sequence[int], cache: NativeCache) -> Tensor:
        """The last hidden state (1, n) of the next tokens, whose keys and values are added to the cache.

        Raises:
            ModelError: The cache has no room for them.
        """
        seen, count = cache.length, len(ids)
        if count > self._buffers.tokens or cache.room > self._room:
            self._make_buffers(max(count, self._buffers.tokens), max(cache.room, self._room))
        x, *angles = self._parts.begun(ids, seen)
        cos, sin = (angle.to(torch.float32).contiguous() for angle in angles)
        last = x.new_empty(1, x.shape[1])
        structures = map(ctypes.byref, (self._model, self._buffers, cache.structure))
        numbers = x.data_ptr(), cos.data_ptr(), sin.data_ptr(), last.data_ptr()
        if self._kernel.llama_pass(*structures, *numbers, count, seen, torch.get_num_threads()):
            raise ModelError(f"{seen + count:,} tokens; the cache has room for {cache.room:,}")
        cache.length = seen + count
        return last

    def _make_buffers(self, tokens: int, room: int) -> None:
        parts = self._parts
        heads, keys, side = parts.heads * parts.features, parts.key_heads * parts.features, _side_width(parts)
        shapes = [(tokens, size) for size in (self._model.n, heads, keys, keys, heads, parts.inner, parts.inner, side)]
        self._buffered = [torch.empty(shape) for shape in (*shapes, (parts.heads, room))]
        self._buffers, self._room = _Buffers(tokens, *(buffer.data_ptr() for buffer in self._buffered)), room

    def _layer(self, block: Block) -> _Layer:
        norms = {name: self._norm(norm) for name in _NORMS if (norm := getattr(block, name)) is not None}
        return _Layer(**norms, **{name: self._linear(getattr(block, name)) for name in _LINEAR})

    def _linear(self, product: LinearProduct) -> _Linear:
        sides = () if product.side is None else map(self._matrix, product.side)
        bias = None if product.bias is None else self._kept_at(product.bias.detach().to(torch.float32))
        return _Linear(self._matrix(product.weight), *(tuple(sides) or (Matrix(), Matrix())), bias)

    def _matrix(self, stored: StoredMatrix) -> Matrix:
        self._kept += [stored.weight] if stored.scale is None else [stored.weight, stored.scale]
        return Matrix.of(stored.weight, stored.scale)

    def _norm(self, norm: Norm) -> _Norm:
        return _Norm(self._kept_at(norm.weight.detach().to(torch.float32)), norm.eps)

    def _kept_at(self, numbers: Tensor) -> int:
        self._kept.append(numbers.contiguous())
        return self._kept[-1].data_ptr()


def native_llama(parts: LlamaParts, kernel: Kernel) -> NativeLlama | None:
    """The compiled pass of a model, where all of its weights are such as the kernel takes, and all layers alike.

    Args:
        parts: The model's.
        kernel: What has been compiled.
    """
    n, d = parts.norm.weight.numel(), parts.features
    heads, keys = parts.heads * d, parts.key_heads * d
    shapes = ((heads, n), (keys, n), (keys, n), (n, heads), (parts.inner, n), (parts.inner, n), (n, parts.inner))
    for block in parts.blocks:
        for name, shape in zip(_LINEAR, shapes, strict=True):
            product = getattr(block, name)
            if not isinstance(product, LinearProduct) or product.weight.weight.shape != shape:
                return None
            if not all(kernel.takes(stored.weight) for stored in (product.weight, *(product.side or ()))):
                return None
        sizes = {norm.weight.numel() for norm in (block.query_norm, block.key_norm) if norm is not None}
        if sizes - {d} or {block.before_attention.weight.numel(), block.before_mlp.weight.numel()} != {n}:
            return None
    return NativeLlama(parts, kernel) if d % 2 == 0 and parts.heads % parts.key_heads == 0 else None


def _side_width(parts: LlamaParts) -> int:
    """Numbers between the two factors of the widest side path."""
    products = (getattr(block, name) for block in parts.blocks for name in _LINEAR)
    return max(len(product.side[0].weight) if product.side is not None else 0 for product in products)
