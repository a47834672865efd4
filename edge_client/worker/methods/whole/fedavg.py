# SPDX-License-Identifier: Apache-2.0
"""Federated averaging's client half: every weight of the target layers trains, in float32, with one Adam for the
round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edge_client.worker.methods.interface import Kept
from edge_client.worker.methods.named import OneAdam
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.padding import Padding
from edge_client.worker.model.weights import row_blocks
from fedcore.model.state import PublishedState
from fedcore.round.plan import Plan
from fedcore.round.training import Training

__all__ = ["Dense", "FedAvg", "copy_base"]

_BLOCK_ROWS = 256
_AFTER_BYTES = 18


class FedAvg(OneAdam):
    """The target layers as ordinary linear layers, from the values of the base.

    Args:
        model: Built; the layers take their places in it.
        training: Of the plan, which has nothing to say of them.
        artefact: None; the method asks for none.
    """

    supersedes: ClassVar[bool] = True
    rank: int = 0
    subspaces: tuple[int, ...] = ()
    local: Mapping[str, nn.Parameter] = {}

    def __init__(self, model: BuiltModel, training: Training, artefact: None = None) -> None:
        del training, artefact
        self._bases = model.layers
        self._weights: dict[str, nn.Parameter] = {}
        self._state: PublishedState | None = None
        self._adam: torch.optim.Optimizer | None = None
        places = {id(module): name for name, module in model.module.named_modules()}
        for name, layer in self._bases.items():
            dense = Dense(layer, model.padding)
            dense.weight = nn.Parameter(torch.empty(layer.out_features, layer.in_features, device=layer.base.device))
            parent, _, last = places[id(layer)].rpartition(".")
            setattr(model.module.get_submodule(parent), last, dense)
            self._weights[name] = dense.weight

    def outline(self, training: Training) -> Kept:
        """Weights, gradients and moments in float32, and the published change as it came."""
        numbers = [layer.out_features * layer.in_features for layer in self._bases.values()]
        return Kept(
            state_bytes=2 * sum(rows * columns for rows, columns in self._state_shapes(training)),
            trained_bytes=(4 + 4) * sum(numbers),
            moments_bytes=(4 + 4) * sum(numbers),
            # Of one layer: what the round began with, its change, and that while it is rounded.
            after_bytes=_AFTER_BYTES * max(numbers),
        )

    def _state_shapes(self, training: Training) -> Iterator[tuple[int, int]]:
        """Of the published entries."""
        return ((layer.out_features, layer.in_features) for layer in self._bases.values())

    @torch.no_grad()
    def install(self, state: PublishedState) -> None:
        """Base plus published change, one float32 addition a number."""
        self._state, self._adam = state, None
        for name, weight in self._weights.items():
            copy_base(self._bases[name], weight)
            self._add_learned(state, name, weight)
            weight.grad = None

    def open(self, plan: Plan, node: str, rank: int) -> None:
        """One Adam for the round."""
        self._adam = torch.optim.Adam(self._weights.values(), lr=plan.training.learning_rate)

    @torch.no_grad()
    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Weights less what the round began with."""
        assert self._state is not None
        for name, weight in self._weights.items():
            start = torch.empty_like(weight)
            copy_base(self._bases[name], start)
            self._add_learned(self._state, name, start)
            yield name, (weight - start).cpu().numpy()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self._weights.items()

    def _add_learned(self, state: PublishedState, name: str, weight: Tensor) -> None:
        """Add what a state has learned of a layer."""
        weight.add_(torch.from_numpy(state.entries[name].values()).to(weight.device))


class Dense(nn.Linear):
    """A target layer as an ordinary one: float32 weights, products in the compute dtype, and of real tokens alone."""

    def __init__(self, layer: SubspaceLinear, padding: Padding) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.register_parameter("bias", layer.bias)
        self._padding, self._compute_dtype = padding, layer.compute_dtype

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) to (..., m)."""
        return self._padding.left_out(x.reshape(-1, self.in_features), self._computed).view(
            *x.shape[:-1], self.out_features
        )

    def _computed(self, x: Tensor) -> Tensor:
        """(t, n) to (t, m)."""
        y = F.linear(x.to(self._compute_dtype), self.weight.to(self._compute_dtype)).to(x.dtype)
        return y if self.bias is None else y + self.bias


def copy_base(layer: SubspaceLinear, weight: Tensor) -> None:
    """The base's values, dequantised in blocks of rows."""
    for rows in row_blocks(layer.out_features, _BLOCK_ROWS):
        layer.base.copy_rows(rows, weight.data[rows])
    layer.base.release()
