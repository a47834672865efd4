# SPDX-License-Identifier: Apache-2.0
"""A layer's W + F P whole in float32, for as long as neither changes: of FedKRSO, an interval.

Four bytes a weight buy one large product forward and one backward, with nothing dequantised or merged in each of them.
Only the factor that trains stays at the side, since it changes with every step.

Legend: m features out, n in, t tokens, r' rank of the factor.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from edge_client.worker.model.products16 import BlockedLayer

__all__ = ["DequantisedWeight", "SidedLayer"]


class SidedLayer(BlockedLayer, Protocol):
    """A layer in blocks that also has a factor at its side."""

    def active_pair(self) -> tuple[Tensor, Tensor] | None:
        """The factor (m, r') that trains, and its rows of P / scale (r', n), float32; None where nothing does."""
        ...


class DequantisedWeight:
    """Makes the matrix on its first use after a change, from what it is the sum of.

    It is never added to: the same W and F give the same numbers, whether an interval has just ended or a worker was
    killed and began anew. Means nothing in 16-bit types, where a small update would be rounded away.
    """

    def __init__(self) -> None:
        self.on = False
        """Whether the layer computes with it."""
        self._whole: Tensor | None = None
        self._right = False

    def switch(self, on: bool) -> None:
        """Compute with it from the next product on, or let go of it at once."""
        self.on = on
        if not on:
            self._whole, self._right = None, False

    def changed(self) -> None:
        """W or F is another now. The memory is used again."""
        self._right = False

    def product(self, layer: SidedLayer, x: Tensor, out: Tensor, beta: int) -> Tensor:
        """out (t, m) becomes beta out + x (W + F P)^T, less the factor's part; x is (t, n)."""
        return out.addmm_(x, self._made(layer).T, beta=beta)

    def transposed_product(self, layer: SidedLayer, gy: Tensor) -> Tensor:
        """gy (W + F P), the gradient of x (t, n), with gy (t, m) and the factor's part."""
        gx = gy @ self._made(layer)
        if (pair := layer.active_pair()) is not None:
            factor, rows = pair
            gx.addmm_(gy @ factor, rows, alpha=layer.scale)
        return gx

    @torch.no_grad()
    def _made(self, layer: SidedLayer) -> Tensor:
        if self._whole is None:
            shape = layer.out_features, layer.in_features
            # Also where a state is measured: what is made in inference mode cannot be written again in training.
            with torch.inference_mode(False):
                self._whole = torch.empty(shape, dtype=torch.float32, device=layer.base.device)
        if not self._right:
            for rows, block, _ in layer.blocks(layer.signs(with_factor=False), merge=True, with_factor=False):
                self._whole[rows] = block
            layer.base.release()
            self._right = True
        return self._whole
