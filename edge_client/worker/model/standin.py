# SPDX-License-Identifier: Apache-2.0
"""Stands where a weight was, for modules that compute with a layer's `weight` instead of calling the layer.

T5 looks at its dtype, Mamba multiplies with it, mixtures of experts pick an expert's from a tensor of three dimensions.
None of them has to know that the weight is 8-bit numbers and a side path: a product with the stand-in is the layer's
own product, and everything else is done with the weight made whole for a moment, (m, n) in float32, through which
gradients reach the side factor all the same.

Legend: m features out, n in, e experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Experts", "StandIn", "unbiased"]


def unbiased(layer: Any, x: Tensor) -> Tensor:
    """A layer's product with x (..., n), without its bias, whatever x's rows are; (..., m)."""
    if hasattr(layer, "unbiased"):
        made: Tensor = layer.unbiased(x)
    elif hasattr(layer, "biased"):
        flat: Tensor = layer.biased(x.reshape(-1, layer.in_features), None)
        made = flat.view(*x.shape[:-1], layer.out_features).to(x.dtype)
    else:
        # A method put a module of its own in the place of a layer without a bias.
        made = layer(x)
    return made


class StandIn:
    """W (m, n) of one layer, or of several one above the other, that torch's functions take in place of a tensor.

    Args:
        layers: From the first rows to the last; each with `in_features` and `out_features`.
        transposed: Stand for the transpose (n, m).
    """

    dtype = torch.float32

    def __init__(self, *layers: Any, transposed: bool = False) -> None:
        self._layers: Sequence[Any] = layers
        self._transposed = transposed

    @property
    def shape(self) -> torch.Size:
        """Rows and columns."""
        rows, columns = sum(layer.out_features for layer in self._layers), self._layers[0].in_features
        return torch.Size((columns, rows) if self._transposed else (rows, columns))

    def times(self, x: Tensor) -> Tensor:
        """x (..., n) W^T, (..., m)."""
        made = [unbiased(layer, x) for layer in self._layers]
        return made[0] if len(made) == 1 else torch.cat(made, dim=-1)

    def whole(self) -> Tensor:
        """The tensor that this stands for, float32; differentiable in the layers' side factors."""
        columns = self._layers[0].in_features
        # Products with ones and zeros are exact.
        transpose = self.times(torch.eye(columns, device=self.device))
        return transpose if self._transposed else transpose.T

    @property
    def device(self) -> torch.device:
        """Where the first layer's weight lies."""
        device: torch.device = self._layers[0].base.device
        return device

    def __matmul__(self, x: Tensor) -> Tensor:
        """W x."""
        return self.whole() @ x if self._transposed else self.times(x.mT).mT

    def __rmatmul__(self, x: Tensor) -> Tensor:
        """x W."""
        return self.times(x) if self._transposed else x @ self.whole()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.whole(), name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Products by the layers; any other function on the whole weight."""
        if func is F.linear and isinstance(args[1], cls) and not args[1]._transposed and isinstance(args[0], Tensor):
            y, bias = args[1].times(args[0]), (*args[2:], *(kwargs or {}).values())
            return y if not bias or bias[0] is None else y + bias[0]
        products = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
        if func in products and isinstance(args[0], Tensor):
            return args[1].__rmatmul__(args[0])
        return func(*(_whole(one) for one in args), **{name: _whole(one) for name, one in (kwargs or {}).items()})


def _whole(one: Any) -> Any:
    return one.whole() if isinstance(one, StandIn) else one


class Experts(nn.Module):
    """Weights (e, m, n) of experts, each made of layers of its own.

    Args:
        layers: Of each expert the layers of its rows, from the first to the last.
        transposed: Each expert's weight is looked at as (n, m).
    """

    def __init__(self, layers: Sequence[Sequence[nn.Module]], *, transposed: bool = False) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.ModuleList(parts) for parts in layers)
        self.transposed = transposed

    def __getitem__(self, index: Tensor | int) -> StandIn:
        """One expert's weight."""
        parts: Any = self.experts[int(index)]
        return StandIn(*parts, transposed=self.transposed)

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def shape(self) -> torch.Size:
        """Experts, and rows and columns of each."""
        return torch.Size((len(self), *self[0].shape))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """A batch's product with all experts, one each; any other function on the whole weights."""
        if func in (torch.bmm, torch.matmul, Tensor.matmul, Tensor.__matmul__) and isinstance(args[1], cls):
            return torch.stack([x @ args[1][index] for index, x in enumerate(args[0])])
        whole = [
            torch.stack([one[i].whole() for i in range(len(one))]) if isinstance(one, cls) else one for one in args
        ]
        return func(*whole, **(kwargs or {}))
