# SPDX-License-Identifier: Apache-2.0
"""Products of a few rows with a model's weights, for when nothing is learned: each weight is read once, as stored.

A layer's own product writes W out in floating point block by block, which pays for many rows and not for one token's.
Here the side path stays in two thin factors, F (P x): they take (2 m + n) K r bytes beside the m n of W, so merging
them into W, in float32, would read more until K r is three quarters of the layer's width.

Legend: m features out, n in, t rows, r rank, K subspaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge_client.worker.generate.kernel import Kernel
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.weights import FloatWeight, Int8Weight, Scratch, row_blocks

__all__ = ["FEW_ROWS", "Product", "layer_product", "products_of", "replaced"]

FEW_ROWS = 4
"""Rows up to which the kernel is faster than blocks in floating point (docs/benchmarks.md)."""
_BLOCK_ROWS = 256

Product = Callable[[Tensor, Tensor, bool], None]
"""(x (t, n), out (t, m), add): out becomes the module's output, or that is added to it; float32, contiguous."""


def products_of(model: BuiltModel, kernel: Kernel | None) -> dict[nn.Module, Product]:
    """Of every target layer that lies on the processor and computes in float32, and of a head that is stored in
    another type than hidden states have; other modules compute as ever."""
    found: dict[nn.Module, Product] = {}
    for layer in model.layers.values():
        product = layer_product(layer, kernel)
        if product is not None:
            found[layer] = product
    module: Any = model.module
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    if isinstance(head, nn.Linear) and head.weight.dtype != torch.float32:
        found[head] = _weight_product(head.weight, None, head.bias, kernel)
    return found


def layer_product(layer: SubspaceLinear, kernel: Kernel | None) -> Product | None:
    """A target layer's; None where it computes in another type or place, or has more than a published state."""
    base = layer.base
    plain = isinstance(base, Int8Weight | FloatWeight) and base.device.type == "cpu" and not base.mapped
    if not plain or layer.compute_dtype != torch.float32 or layer.factor is not None or layer.accumulators():
        return None
    weight, scale = (base.q, base.scale) if isinstance(base, Int8Weight) else (cast("FloatWeight", base).weight, None)
    product = _weight_product(weight, scale, layer.bias, kernel)
    if layer.state is None or layer.projection is None:
        return product
    ones = torch.ones(len(layer.projection)) if layer.row_scale is None else layer.row_scale
    down = _weight_product(layer.projection, ones * layer.scale, None, kernel)
    up = _weight_product(layer.state, layer.state_scale, None, kernel)
    width = len(layer.projection)

    def with_side(x: Tensor, out: Tensor, add: bool) -> None:
        z = x.new_empty(len(x), width)
        down(x, z, False)
        product(x, out, add)
        up(z, out, True)

    return with_side


def _weight_product(weight: Tensor, scale: Tensor | None, bias: Tensor | None, kernel: Kernel | None) -> Product:
    compiled = kernel if kernel is not None and kernel.takes(weight) else None

    def product(x: Tensor, out: Tensor, add: bool) -> None:
        if bias is not None:
            # What the product is then added to.
            out.add_(bias) if add else out.copy_(bias.expand_as(out))
            add = True
        if compiled is not None and len(x) <= FEW_ROWS:
            compiled.product(weight, scale, x, out, add=add)
        else:
            _in_blocks(weight, scale, x, out, add)

    return product


def _in_blocks(weight: Tensor, scale: Tensor | None, x: Tensor, out: Tensor, add: bool) -> None:
    """The same with torch alone."""
    if weight.dtype == torch.float32 and scale is None:
        out.addmm_(x, weight.T, beta=int(add))
        return
    scratch = Scratch()
    for rows in row_blocks(len(weight), _BLOCK_ROWS):
        shape = (rows.stop - rows.start, weight.shape[1])
        block = scratch.take("block", shape, torch.float32, x.device).copy_(weight[rows])
        if scale is not None:
            block.mul_(scale[rows, None])
        out[:, rows].addmm_(x, block.T, beta=int(add))


@contextmanager
def replaced(products: Mapping[nn.Module, Product]) -> Iterator[None]:
    """Inside, modules compute with these products, whoever calls them: transformers' own pass."""
    for module, product in products.items():
        module.forward = _forward(module, product)
    try:
        yield
    finally:
        for module in products:
            del module.forward


def _forward(module: Any, product: Product) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(-1, module.in_features).to(torch.float32).contiguous()
        if len(rows) > FEW_ROWS and isinstance(module, SubspaceLinear):
            return type(module).forward(module, x)
        out = rows.new_empty(len(rows), module.out_features)
        product(rows, out, False)
        return out.view(*x.shape[:-1], module.out_features)

    return forward
