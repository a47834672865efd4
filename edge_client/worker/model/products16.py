# SPDX-License-Identifier: Apache-2.0
"""Products of a layer in a 16-bit type, with float32 around them.

Each block of W is a 16-bit matrix; what blocks give is added up in float32 (of the gradient, every few of them), so
that the error does not grow with their number, which is each device's own choice. Inputs, outputs and their gradients
are float32.

On a processor tokens go through in chunks of two fixed sizes, the last one filled up with zeros. The library behind
these products (oneDNN) writes code for each shape that it meets and keeps it: with texts of changing length, 14 MB for
every new number of tokens and 600 MB in all were measured on MiniLM's three layer shapes. With two sizes it writes
little, once.

Legend: m features out, n in, t tokens, r rank, K subspaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from edge_client.worker.model.weights import Scratch, Weight, worth_running

__all__ = ["CHUNKS", "PER_TOKEN", "BlockedLayer", "product", "token_chunks", "transposed_product"]

CHUNKS = (128, 32)
"""Tokens in a chunk; the first is as fast as larger ones."""

PER_TOKEN = ("tokens", "z")
"""Buffers that are as large as the number of tokens."""

# So many blocks' parts of a gradient are added up in the 16-bit type, each with a rounding, before they go to float32.
_BLOCKS_TOGETHER = 8

_Chunk = tuple[slice, int]


class BlockedLayer(Protocol):
    """What a product needs of a layer: W in blocks of rows, and the projections and side factors of what was
    learned."""

    in_features: int
    out_features: int
    scale: float
    compute_dtype: torch.dtype
    scratch: Scratch | None
    base: Weight

    def signs(self, *, with_factor: bool) -> Tensor | None:
        """P / scale (K r, n) in the compute dtype; None where nothing is learned."""
        ...

    def blocks(
        self, signs: Tensor | None, *, merge: bool, with_factor: bool
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Rows of W, their values, and their side factor."""
        ...


def token_chunks(tokens: int, *, fixed: bool) -> Iterator[_Chunk]:
    """Tokens in chunks: which, and how many rows the product has for them.

    Args:
        tokens: t.
        fixed: In chunks of fixed sizes; else all at once.

    Example:
        >>> [(c.start, c.stop, height) for c, height in token_chunks(300, fixed=True)]
        [(0, 128, 128), (128, 256, 128), (256, 288, 32), (288, 300, 32)]
    """
    if not fixed:
        yield slice(0, tokens), tokens
        return
    large, small = CHUNKS
    start = 0
    while start < tokens:
        height = large if tokens - start > 2 * small else small
        yield slice(start, min(start + height, tokens)), height
        start += height


class _Chunks:
    """A product's tokens in chunks, and buffers for one chunk at a time.

    All buffers are the model's scratch: whatever is allocated anew costs more in page faults than the product gains,
    where the allocator gives memory back at once. Sums of the two types go through a float32 buffer for the same
    reason.

    Args:
        layer: Whose product.
        like: Numbers of each token (t, ...).
    """

    def __init__(self, layer: BlockedLayer, like: Tensor) -> None:
        tokens, torch_device = like.shape[0], like.device
        self._scratch = layer.scratch or Scratch()
        self._dtype, self._device = layer.compute_dtype, torch_device
        chunks = list(token_chunks(tokens, fixed=torch_device.type == "cpu"))
        self._tokens, self._height = tokens, sum(height for _, height in chunks)
        self._most = max((height for _, height in chunks), default=0)
        self._chunks = worth_running(chunks, like)

    def split(self, whole: Tensor) -> list[Tensor]:
        """A tensor's rows by chunk, without what fills the last one up."""
        return [whole[tokens] for tokens, _ in self._chunks]

    def rows(self, use: str, features: int) -> tuple[Tensor, list[Tensor]]:
        """A 16-bit buffer for all tokens and what fills the last chunk up; whole, and by chunk."""
        whole = self._scratch.take(use, (self._height, features), self._dtype, self._device)
        return whole, [whole[tokens.start : tokens.start + height] for tokens, height in self._chunks]

    def part(self, use: str, features: int, dtype: torch.dtype | None = None) -> Tensor:
        """A buffer for one chunk."""
        return self._scratch.take(use, (self._most, features), dtype or self._dtype, self._device)

    def filled(self, use: str, values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Values of all tokens in the 16-bit type, with rows of zeros below them."""
        whole, parts = self.rows(use, values.shape[1])
        whole[: self._tokens].copy_(values)
        if self._height > self._tokens:
            whole[self._tokens :].zero_()
        return whole, parts


def product(layer: BlockedLayer, x: Tensor, out: Tensor) -> Tensor:
    """out (t, m) += x W'^T, where W' = W + F P less the active factor; x is (t, n), both float32."""
    work = _Chunks(layer, x)
    signs = layer.signs(with_factor=False)
    _, inputs = work.filled("tokens", x)
    zs: list[Tensor] = []
    if signs is not None:
        z, zs = work.rows("z", signs.shape[0])  # (t, K r)
        for one, into in zip(inputs, zs, strict=True):
            torch.mm(one, signs.T, out=into)
        z.mul_(layer.scale)
    outs = work.split(out)
    for rows, block, side in layer.blocks(signs, merge=False, with_factor=False):
        part, wide = work.part("part", block.shape[0]), work.part("wide", block.shape[0], torch.float32)
        for index, (one, into) in enumerate(zip(inputs, outs, strict=True)):
            got = torch.mm(one, block.T, out=part[: one.shape[0]])
            if side is not None:
                got.addmm_(zs[index], side.T)
            into[:, rows].add_(wide[: into.shape[0]].copy_(got[: into.shape[0]]))
    layer.base.release()
    return out


def transposed_product(layer: BlockedLayer, gy: Tensor) -> Tensor:
    """gy (W + F P), the gradient of x (t, n), with gy (t, m) and all of F; float32."""
    work = _Chunks(layer, gy)
    signs = layer.signs(with_factor=True)
    gx = gy.new_zeros(gy.shape[0], layer.in_features, dtype=torch.float32)
    # Of a few blocks of W in the 16-bit type, and of all of them.
    _, few = work.rows("tokens", layer.in_features)
    gxs, gys = work.split(gx), work.split(gy)
    few_z: list[Tensor] = []
    gz = gx.new_zeros(0 if signs is None else gy.shape[0], 0 if signs is None else signs.shape[0])  # (t, K r)
    if signs is not None:
        _, few_z = work.rows("z", signs.shape[0])
    count = 0
    for rows, block, side in layer.blocks(signs, merge=False, with_factor=True):
        beta = int(count > 0)
        gradient = work.part("gradient", block.shape[0])
        for index, (one, into) in enumerate(zip(gys, few, strict=True)):
            g = gradient[: into.shape[0]]
            g[: one.shape[0]].copy_(one[:, rows])
            if into.shape[0] > one.shape[0]:
                g[one.shape[0] :].zero_()
            into.addmm_(g, block, beta=beta)
            if side is not None:
                few_z[index].addmm_(g, side, beta=beta)
        count += 1
        if count == _BLOCKS_TOGETHER or rows.stop == layer.out_features:
            _add(gxs, few, work.part("wide", layer.in_features, torch.float32))
            if signs is not None:
                _add(work.split(gz), few_z, work.part("wide", signs.shape[0], torch.float32))
            count = 0
    layer.base.release()
    if signs is not None:
        _, few_z = work.filled("z", gz.mul_(layer.scale))
        for one, into in zip(few_z, few, strict=True):
            torch.mm(one, signs, out=into)
        _add(gxs, few, work.part("wide", layer.in_features, torch.float32))
    return gx


def _add(sums: list[Tensor], parts: list[Tensor], wide: Tensor) -> None:
    """Add 16-bit parts to float32 sums."""
    for whole, one in zip(sums, parts, strict=True):
        whole.add_(wide[: whole.shape[0]].copy_(one[: whole.shape[0]]))
