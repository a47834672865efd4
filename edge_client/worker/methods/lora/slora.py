# SPDX-License-Identifier: Apache-2.0
"""SLoRA's client half: in rounds of the first stage some numbers of each row of W train, in those of the second LoRA's
factors; a layer computes with both at all times.

The numbers are added where W's rows are dequantised anyway, so a pass makes no more products. Their gradient is made
of blocks of rows of W's, of which the places are kept: W's gradient is never whole.

Legend: m features out, n in, t tokens, k numbers a row, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from edge_client.worker.methods.interface import Kept
from edge_client.worker.methods.named import NamedTensors
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.standin import StandIn
from edge_client.worker.model.weights import (
    FloatWeight,
    Int8Weight,
    SparselyMovedWeight,
    Weight,
    row_blocks,
    worth_running,
)
from fedcore.round.training import SparseTraining, Training
from fedcore.round.training.sparse import SPARSE, per_row
from fedcore.subspaces.sparse import positions
from fedcore.weights.initial import initial_factor

__all__ = ["SLoRA"]

_BLOCK_ROWS = 256


class SLoRA(NamedTensors):
    """Sparse numbers, or factors.

    Args:
        model: Built; layers with both take the places of its own.
        training: Of the plan.
        artefact: None; the method asks for none.
    """

    def __init__(self, model: BuiltModel, training: SparseTraining, artefact: None = None) -> None:
        del artefact
        self._seed, self.rank = training.run_seed, training.rank
        self._moved = {name: _Moved(layer, training) for name, layer in model.layers.items()}
        model.put_around(self._moved)
        parameters: dict[str, nn.Parameter] = {}
        for name, layer in self._moved.items():
            parameters |= {name + SPARSE: layer.values, f"{name}/A": layer.down, f"{name}/B": layer.up}
        super().__init__(model, parameters)

    def outline(self, training: Training) -> Kept:
        """The larger stage's gradients and moments; values, starts and state of both; places."""
        kept, sparse = self.kept_beside(), sum(layer.values.numel() for layer in self._moved.values())
        numbers = sum(parameter.numel() for parameter in self._parameters.values())
        most = max(sparse, numbers - sparse)
        return replace(
            kept,
            # Places are 8 bytes each.
            state_bytes=kept.state_bytes + 8 * sparse,
            trained_bytes=(4 + 4) * numbers + 4 * most,
            moments_bytes=(4 + 4) * most,
            # In 16-bit types the sum of a block as floats too.
            block_bytes=kept.block_bytes + (4 if kept.block_bytes < 4 else 0),
        )

    def trains(self, name: str, training: Training) -> bool:
        """What the stage trains."""
        assert isinstance(training, SparseTraining)
        return name.endswith(SPARSE) == (training.stage == "sparse")

    def first_values(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """A as LoRA draws it, all else zero; the places too, once."""
        for name, layer in self._moved.items():
            m, n, k = layer.out_features, layer.in_features, layer.values.shape[1]
            layer.places.copy_(torch.from_numpy(positions(self._seed, name, m, n, k)))
            yield name + SPARSE, np.zeros((m, k), np.float32)
            yield f"{name}/A", initial_factor(f"{name}/A", self.rank, n, self._seed)
            yield f"{name}/B", np.zeros((m, self.rank), np.float32)


class _Moved(nn.Module):
    """A layer with sparse numbers on its weight, and factors beside it."""

    def __init__(self, own: SubspaceLinear, training: SparseTraining) -> None:
        super().__init__()
        assert isinstance(own.base, Int8Weight | FloatWeight), "a layer has one method"
        device, k = own.base.device, per_row(own.in_features, training.density)
        self.in_features, self.out_features = own.in_features, own.out_features
        self.values = nn.Parameter(torch.zeros(own.out_features, k, device=device))
        self.down = nn.Parameter(torch.zeros(training.rank, own.in_features, device=device))
        self.up = nn.Parameter(torch.zeros(own.out_features, training.rank, device=device))
        self._scale = training.alpha / training.rank
        places = torch.zeros(own.out_features, k, dtype=torch.int64, device=device)
        own.replace_base(SparselyMovedWeight(own.base, places, self.values, own.scratch))
        self.own = own

    @property
    def places(self) -> Tensor:
        """Columns (m, k) of the sparse numbers."""
        base = self.own.base
        assert isinstance(base, SparselyMovedWeight)
        return base.places

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) to (..., m)."""
        return self._beside(self.own(x), x)

    def unbiased(self, x: Tensor) -> Tensor:
        """x (..., n) times the whole weight's transpose."""
        flat = self.own.biased(x.reshape(-1, self.in_features), None)
        return self._beside(flat.view(*x.shape[:-1], self.out_features).to(x.dtype), x)

    @property
    def weight(self) -> StandIn:
        """For modules that compute with it themselves."""
        return StandIn(self)

    @property
    def bias(self) -> Tensor | None:
        """The layer's."""
        return self.own.bias

    @property
    def base(self) -> Weight:
        """Says where the layer lies."""
        return self.own.base

    def _beside(self, y: Tensor, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.values.requires_grad:
            y = _Moves.apply(y, x, self.values, self.places)  # type: ignore[no-untyped-call]
        return y + ((x.to(torch.float32) @ self.down.T) @ self.up.T * self._scale).to(y.dtype)


class _Moves(torch.autograd.Function):
    """y as it is; the sparse numbers that it was made with get their gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, values: Tensor, places: Tensor) -> Tensor:
        del values
        ctx.save_for_backward(x, places)
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, places = ctx.saved_tensors
        out = gy.new_zeros(places.shape, dtype=torch.float32)
        flat_gy, flat_x = gy.reshape(-1, gy.shape[-1]), x.reshape(-1, x.shape[-1]).to(torch.float32)
        for rows in worth_running(row_blocks(len(places), _BLOCK_ROWS), gy):
            block = flat_gy[:, rows].T.to(torch.float32) @ flat_x
            torch.gather(block, 1, places[rows], out=out[rows])
        return gy, None, out, None
