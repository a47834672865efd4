# SPDX-License-Identifier: Apache-2.0
"""Products with a model's weights, for when nothing is learned: each weight is read once, as stored.

A layer's own product writes W out in floating point block by block, which pays for many rows and not for one token's.
Here the side path stays in two thin factors, F (P x): they take (2 m + n) K r bytes beside the m n of W, so merging
them into W, in float32, would read more until K r is three quarters of the layer's width.

Legend: m features out, n in, t rows, r rank, K subspaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.worker.compiled.kernel import Kernel
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.weights import FloatWeight, Int8Weight, Scratch, row_blocks

__all__ = [
    "LinearProduct",
    "Product",
    "StoredMatrix",
    "TensorKernel",
    "layer_product",
    "numbers_of",
    "products_of",
    "replaced",
]

_FEW_ROWS = 4
"""Rows up to which, without a kernel, a layer's own product with its merged blocks is not better."""
_BLOCK_ROWS = 256
_KINDS = frozenset((torch.int8, torch.int16, torch.bfloat16, torch.float16, torch.float32))

Product = Callable[[Tensor, Tensor, bool], None]
"""(x (t, n), out (t, m), add): out becomes the module's output, or that is added to it; float32, contiguous."""


def numbers_of(tensor: Tensor) -> NDArray[Any]:
    """A tensor's own memory as an array; bfloat16 as uint16, which NumPy has no type for."""
    plain = tensor.detach()
    return plain.view(torch.int16).numpy().view(np.uint16) if plain.dtype == torch.bfloat16 else plain.numpy()


class TensorKernel:
    """The compiled products, of tensors.

    Args:
        kernel: What has been compiled.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel: Kernel | None = kernel

    def takes(self, weight: Tensor) -> bool:
        """Whether there is a product for a weight as it is stored: int8, int16 or floating point of 16 or 32 bits, on
        the processor."""
        return weight.dtype in _KINDS and weight.device.type == "cpu" and weight.is_contiguous() and weight.ndim == 2

    def product(self, weight: Tensor, scale: Tensor | None, x: Tensor, out: Tensor, *, add: bool = False) -> None:
        """out (t, m) becomes x W^T scale, or that is added to it (`Kernel.product`); it and x contiguous."""
        assert self.kernel is not None
        scales = None if scale is None else numbers_of(scale)
        arrays = numbers_of(weight), scales, numbers_of(x), numbers_of(out)
        self.kernel.product(*arrays, add=add, threads=torch.get_num_threads())


@dataclass(frozen=True, eq=False)
class StoredMatrix:
    """W (m, n) as stored, times a factor for each row.

    Attributes:
        weight: Of any dtype.
        scale: float32 (m,), or None for ones.
    """

    weight: Tensor
    scale: Tensor | None = None

    def product(self, x: Tensor, out: Tensor, add: bool, kernel: TensorKernel | None) -> None:
        """out (t, m) becomes x W^T, or that is added to it."""
        if kernel is not None and kernel.takes(self.weight):
            kernel.product(self.weight, self.scale, x, out, add=add)
        elif self.weight.dtype == torch.float32 and self.scale is None:
            out.addmm_(x, self.weight.T, beta=int(add))
        else:
            self._in_blocks(x, out, add)

    def _in_blocks(self, x: Tensor, out: Tensor, add: bool) -> None:
        scratch, width = Scratch(), self.weight.shape[1]
        for rows in row_blocks(len(self.weight), _BLOCK_ROWS):
            block = scratch.take("block", (rows.stop - rows.start, width), torch.float32, x.device)
            block.copy_(self.weight[rows])
            if self.scale is not None:
                block.mul_(self.scale[rows, None])
            out[:, rows].addmm_(x, block.T, beta=int(add))


@dataclass(frozen=True, eq=False)
class LinearProduct:
    """W x + bias + up (down x).

    Attributes:
        weight: W.
        bias: float32 (m,), or None.
        side: Down (K r, n) and up (m, K r) of what was learned, or None.
        kernel: Faster products, or None.
    """

    weight: StoredMatrix
    bias: Tensor | None
    side: tuple[StoredMatrix, StoredMatrix] | None
    kernel: TensorKernel | None

    def __call__(self, x: Tensor, out: Tensor, add: bool) -> None:
        """As `Product` says."""
        if self.bias is not None:
            # What the product is then added to.
            out.add_(self.bias) if add else out.copy_(self.bias.expand_as(out))
            add = True
        self.weight.product(x, out, add, self.kernel)
        if self.side is not None:
            down, up = self.side
            z = x.new_empty(len(x), len(down.weight))
            down.product(x, z, False, self.kernel)
            up.product(z, out, True, self.kernel)


def products_of(model: BuiltModel, kernel: TensorKernel | None) -> dict[nn.Module, LinearProduct]:
    """Of every target layer that lies on the processor and computes in float32, and of a head that is stored in another
    type than hidden states have; other modules compute as ever."""
    found: dict[nn.Module, LinearProduct] = {}
    for layer in model.layers.values():
        product = layer_product(layer, kernel)
        if product is not None:
            found[layer] = product
    module: Any = model.module
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    if isinstance(head, nn.Linear) and head.weight.dtype != torch.float32:
        found[head] = LinearProduct(StoredMatrix(head.weight), head.bias, None, kernel)
    return found


def layer_product(layer: SubspaceLinear, kernel: TensorKernel | None) -> LinearProduct | None:
    """A target layer's; None where it computes in another type or place, or has more than a published state."""
    base = layer.base
    if not isinstance(base, Int8Weight | FloatWeight) or base.device.type != "cpu" or base.mapped:
        return None
    if layer.compute_dtype != torch.float32 or layer.factor is not None or layer.accumulators():
        return None
    weight = StoredMatrix(base.q, base.scale) if isinstance(base, Int8Weight) else StoredMatrix(base.weight)
    if layer.state is None or layer.projection is None:
        return LinearProduct(weight, layer.bias, None, kernel)
    ones = torch.ones(len(layer.projection)) if layer.row_scale is None else layer.row_scale
    down, up = StoredMatrix(layer.projection, ones * layer.scale), StoredMatrix(layer.state, layer.state_scale)
    return LinearProduct(weight, layer.bias, (down, up), kernel)


@contextmanager
def replaced(products: Mapping[nn.Module, LinearProduct]) -> Iterator[None]:
    """Inside, modules compute with these products, whoever calls them: transformers' own pass."""
    for module, product in products.items():
        module.forward = _forward(module, product)
    try:
        yield
    finally:
        for module in products:
            del module.forward


def _forward(module: Any, product: LinearProduct) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(-1, module.in_features).to(torch.float32).contiguous()
        if product.kernel is None and len(rows) > _FEW_ROWS and isinstance(module, SubspaceLinear):
            return type(module).forward(module, x)
        out = rows.new_empty(len(rows), module.out_features)
        product(rows, out, False)
        return out.view(*x.shape[:-1], module.out_features)

    return forward
