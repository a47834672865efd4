# SPDX-License-Identifier: Apache-2.0
"""FedCyBGD's client half: the layers of the round's block train in float32, with one Adam for the round; all others
stay 8-bit numbers, with the published change beside them.

A layer in float32 computes with what the same layer computed with before, base plus published change in one addition a
number, so a block that takes its turn begins where it was left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edge_client.worker.methods.interface import Kept
from edge_client.worker.methods.named import OneAdam
from edge_client.worker.methods.whole.fedavg import Dense, copy_base
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.padding import Padding
from edge_client.worker.model.standin import StandIn
from edge_client.worker.model.weights import FloatWeight, Int8Weight, PublishedWeight, Weight
from fedcore.model.state import PublishedState
from fedcore.round.plan import Plan
from fedcore.round.training import BlockTraining, Training
from fedcore.round.training.block import blocks_of

__all__ = ["FedCyBGD"]

_AFTER_BYTES = 18


class FedCyBGD(OneAdam):
    """One block of the target layers at a time as ordinary linear layers.

    Args:
        model: Built; layers that can train take the places of its own.
        training: Of the plan; which block trains is learned when a round is opened.
        artefact: None; the method asks for none.
    """

    supersedes: ClassVar[bool] = True
    rank: int = 0
    subspaces: tuple[int, ...] = ()
    local: Mapping[str, nn.Parameter] = {}

    def __init__(self, model: BuiltModel, training: Training, artefact: None = None) -> None:
        del training, artefact
        self._layers = {name: _Layer(layer, model.padding) for name, layer in model.layers.items()}
        model.put_around(self._layers)
        self._block: tuple[str, ...] = ()
        self._adam: torch.optim.Adam | None = None

    def outline(self, training: Training) -> Kept:
        """The published changes of all layers as they came; of the largest block weights, gradients and moments. The
        first block trains: gradients go through all others before they are there."""
        numbers = {name: layer.out_features * layer.in_features for name, layer in self._layers.items()}
        blocks = blocks_of(numbers)
        for name, layer in self._layers.items():
            layer.hold(name in blocks[0])
        largest = max(sum(numbers[name] for name in block) for block in blocks)
        width = max(layer.own.compute_dtype.itemsize for layer in self._layers.values())
        return Kept(
            state_bytes=2 * sum(numbers.values()),
            trained_bytes=(4 + 4) * largest,
            moments_bytes=(4 + 4) * largest,
            # A block of rows of the sum and of the change as floats; in 16-bit types the sum as it is used too.
            block_bytes=4 + 4 + (width if width < 4 else 0),
            # Of one layer: what the round began with, its change, and that while it is rounded.
            after_bytes=_AFTER_BYTES * max(numbers.values()),
        )

    @torch.no_grad()
    def install(self, state: PublishedState) -> None:
        """All layers as 8-bit numbers with the published change."""
        self._block, self._adam = (), None
        for name, layer in self._layers.items():
            layer.hold(False)
            if isinstance(layer.own.base, Int8Weight | FloatWeight):
                layer.own.replace_base(PublishedWeight(layer.own.base, layer.own.scratch))
            base, entry = layer.own.base, state.entries[name]
            assert isinstance(base, PublishedWeight)
            base.publish(entry.q, entry.exponent)

    @torch.no_grad()
    def open(self, plan: Plan, node: str, rank: int) -> None:
        """The round's block in float32, and one Adam for it."""
        training = plan.training
        assert isinstance(training, BlockTraining)
        self._block = training.block(self._layers)
        for name, layer in self._layers.items():
            layer.hold(name in self._block)
            if layer.whole is not None:
                copy_base(layer.own, layer.whole.weight)
        self._adam = torch.optim.Adam((one for _, one in self._trained()), lr=training.learning_rate)

    @torch.no_grad()
    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Weights of the block less what the round began with."""
        for name, weight in self._trained():
            start = torch.empty_like(weight)
            copy_base(self._layers[name].own, start)
            yield name, (weight - start).cpu().numpy()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name in self._block:
            whole = self._layers[name].whole
            assert whole is not None and isinstance(whole.weight, nn.Parameter)
            yield name, whole.weight


class _Layer(nn.Module):
    """A target layer, frozen or in float32."""

    def __init__(self, own: SubspaceLinear, padding: Padding) -> None:
        super().__init__()
        self.in_features, self.out_features = own.in_features, own.out_features
        self.own, self._padding = own, padding
        self.whole: Dense | None
        self.hold(False)

    def hold(self, whole: bool) -> None:
        """Have weights in float32, whose numbers are anything yet; or none any more."""
        self.whole = None
        if whole:
            self.whole = Dense(self.own, self._padding)
            self.whole.weight = nn.Parameter(torch.empty(self.out_features, self.in_features, device=self.base.device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) to (..., m)."""
        y: Tensor = (self.own if self.whole is None else self.whole)(x)
        return y

    def unbiased(self, x: Tensor) -> Tensor:
        """x (..., n) times the weight's transpose."""
        if self.whole is not None:
            return F.linear(x.to(torch.float32), self.whole.weight).to(x.dtype)
        flat = self.own.biased(x.reshape(-1, self.in_features), None)
        return flat.view(*x.shape[:-1], self.out_features).to(x.dtype)

    @property
    def base(self) -> Weight:
        """What the weight was made of."""
        return self.own.base

    @property
    def weight(self) -> Any:
        """For modules that compute with it themselves."""
        return StandIn(self)
