# SPDX-License-Identifier: Apache-2.0
"""What client halves have in common of which some layers train whole, in float32, and all others stay 8-bit numbers
with the published change beside them.

A layer in float32 computes with what the same layer computed with before, base plus published change in one addition a
number, so a layer that takes its turn begins where it was left."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
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
from fedcore.round.training import Training

__all__ = ["HeldLayer", "SomeLayers"]

_AFTER_BYTES = 18


class SomeLayers(OneAdam):
    """Abstract.

    Args:
        model: Built; layers that can train take the places of its own.
        names: Of the layers whose changes the state has.
    """

    supersedes: ClassVar[bool] = True
    rank: int = 0
    subspaces: tuple[int, ...] = ()
    local: Mapping[str, nn.Parameter] = {}

    def __init__(self, model: BuiltModel, names: Iterable[str]) -> None:
        self.layers = {name: HeldLayer(model.layers[name], model.padding) for name in names}
        model.put_around(self.layers)
        self._block: tuple[str, ...] = ()
        self._adam: torch.optim.Adam | None = None

    @abstractmethod
    def block(self, training: Training) -> tuple[str, ...]:
        """The layers that train in a round."""

    def held(self, largest: int) -> Kept:
        """The published changes of all layers as they came, and weights, gradients and moments of those that train.

        Args:
            largest: Numbers of the layers that train at once, at most.
        """
        numbers = {name: layer.out_features * layer.in_features for name, layer in self.layers.items()}
        width = max(layer.own.compute_dtype.itemsize for layer in self.layers.values())
        return Kept(
            state_bytes=2 * sum(numbers.values()),
            trained_bytes=(4 + 4) * largest,
            moments_bytes=(4 + 4) * largest,
            # A block of rows of the sum and of the change as floats; in 16-bit types the sum as it is used too.
            block_bytes=4 + 4 + (width if width < 4 else 0),
            # Of one layer: what the round began with, its change, and that while it is rounded.
            after_bytes=_AFTER_BYTES * max(numbers.values()) if largest else 0,
        )

    @torch.no_grad()
    def install(self, state: PublishedState) -> None:
        """All layers as 8-bit numbers with the published change."""
        self._block, self._adam = (), None
        for name, layer in self.layers.items():
            layer.hold(False)
            if isinstance(layer.own.base, Int8Weight | FloatWeight):
                layer.own.replace_base(PublishedWeight(layer.own.base, layer.own.scratch))
            base, entry = layer.own.base, state.entries[name]
            assert isinstance(base, PublishedWeight)
            base.publish(entry.q, entry.exponent)

    @torch.no_grad()
    def open(self, plan: Plan, node: str, rank: int) -> None:
        """The layers that train in float32, and one Adam for them; none where there are none."""
        self._block = self.block(plan.training)
        for name, layer in self.layers.items():
            layer.hold(name in self._block)
            if layer.whole is not None:
                copy_base(layer.own, layer.whole.weight)
        trained = [one for _, one in self._trained()]
        self._adam = torch.optim.Adam(trained, lr=plan.training.learning_rate) if trained else None

    @torch.no_grad()
    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Weights that trained less what the round began with."""
        for name, weight in self._trained():
            start = torch.empty_like(weight)
            copy_base(self.layers[name].own, start)
            yield name, (weight - start).cpu().numpy()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name in self._block:
            whole = self.layers[name].whole
            assert whole is not None and isinstance(whole.weight, nn.Parameter)
            yield name, whole.weight


class HeldLayer(nn.Module):
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
