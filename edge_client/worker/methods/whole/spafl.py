# SPDX-License-Identifier: Apache-2.0
"""SpaFL's client half: every weight of the target layers trains, in float32 and for this node alone; a row whose mean
absolute weight is not above its threshold is off.

A row's switch is a step, whose gradient is taken as one within a distance of one and as zero beyond (straight-through,
Bengio et al., arXiv 1308.3432), so the gradient of threshold j is -sum over i of dF/dW'_ji W_ji, W' = W with its rows
switched, and that of W_ji has sign(W_ji) / n times the same beside dF/dW'_ji. (The authors' code has the zero within
and the one beyond, so that their thresholds mostly follow the term beside the loss.) Where less than a hundredth of a
layer's rows is on, its thresholds become zero, as in their code.

Legend: m features out, n in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from edge_client.worker.methods.interface import Kept
from edge_client.worker.methods.whole.fedavg import copy_base
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.padding import Padding
from fedcore.model.state import PublishedState
from fedcore.round.plan import Plan
from fedcore.round.training import ThresholdTraining, Training
from fedcore.round.training.threshold import THRESHOLD

__all__ = ["Masked", "SpaFL"]

_MOMENTUM = 0.9
_LEAST_DENSITY = 0.01
_SAVING_BYTES = 12
"""A number that stays on the node, while it is written: as it was, as it is packed, and with its hash."""


class SpaFL:
    """The target layers with switched rows.

    Args:
        model: Built; the layers take their places in it.
        training: Of the plan.
        artefact: None; the method asks for none.
    """

    supersedes: ClassVar[bool] = True
    rank: int = 0
    subspaces: tuple[int, ...] = ()

    def __init__(self, model: BuiltModel, training: ThresholdTraining, artefact: None = None) -> None:
        del artefact
        self._training, self._model = training, model
        self._layers = {name: Masked(layer, model.padding) for name, layer in model.layers.items()}
        model.put_around(self._layers)
        self._start: dict[str, Tensor] = {}
        self._sgd: torch.optim.SGD | None = None

    @property
    def local(self) -> Mapping[str, nn.Parameter]:
        """Weights, and the thresholds that they were last trained with."""
        weights = {f"{name}/weight": layer.weight for name, layer in self._layers.items()}
        return weights | {f"{name}/seen": layer.seen for name, layer in self._layers.items()}

    def outline(self, training: Training) -> Kept:
        """Weights, gradients and momentum in float32, and of one layer the weights with their rows switched."""
        numbers = sum(layer.weight.numel() for layer in self._layers.values())
        rows = sum(layer.threshold.numel() for layer in self._layers.values())
        return Kept(
            state_bytes=2 * rows + 4 * rows,
            trained_bytes=(4 + 4) * (numbers + rows) + 4 * rows,
            moments_bytes=4 * (numbers + rows),
            after_bytes=_SAVING_BYTES * numbers,
        )

    @torch.no_grad()
    def install(self, state: PublishedState) -> None:
        """The published thresholds, and the base's weights: what the node keeps for itself is put there after."""
        self._sgd = None
        for name, layer in self._layers.items():
            self._start[name] = torch.from_numpy(state.entries[name + THRESHOLD].values()[0])
            layer.threshold.copy_(self._start[name].to(layer.threshold.device))
            layer.seen.copy_(layer.threshold)
            copy_base(layer.own[0], layer.weight)
            layer.weight.grad = layer.threshold.grad = None

    @torch.no_grad()
    def open(self, plan: Plan, node: str, rank: int) -> None:
        """Weights follow what became of their thresholds since they were trained; one SGD for the round."""
        for layer in self._layers.values():
            moved = (layer.threshold - layer.seen) * torch.sign(layer.weight.sum(dim=1)) / layer.in_features
            layer.weight.sub_(moved[:, None])
            layer.seen.copy_(layer.threshold)
        self._sgd = torch.optim.SGD(
            [one for _, one in self._trained()], lr=plan.training.learning_rate, momentum=_MOMENTUM
        )

    def begin(self, interval: int) -> torch.optim.SGD:
        """The same SGD goes on."""
        assert self._sgd is not None
        return self._sgd

    def measure(self, step: int, run: Callable[[], float]) -> float:
        """A pass forward and backward, the term beside the loss, and the gradient within its bound."""
        for layer in self._layers.values():
            layer.keep_some()
        loss = run()
        for layer in self._layers.values():
            if layer.threshold.grad is not None:
                layer.threshold.grad.sub_(torch.exp(-layer.threshold.detach()), alpha=self._training.coefficient)
        torch.nn.utils.clip_grad_norm_([one for _, one in self._trained()], self._training.gradient_clip)
        return loss

    def finish(self, interval: int) -> None:
        """Nothing to do."""

    def kept(self, interval: int) -> Iterator[tuple[str, Tensor]]:
        """Weights and thresholds with their momentum."""
        assert self._sgd is not None
        for name, parameter in self._trained():
            yield f"{name}.value", parameter
            yield f"{name}.momentum", self._sgd.state[parameter]["momentum_buffer"]

    @torch.no_grad()
    def restore(self, interval: int, rank: int, read: Callable[[str], Tensor]) -> None:
        """Take back what `kept` gave."""
        assert self._sgd is not None
        for name, parameter in self._trained():
            parameter.copy_(read(f"{name}.value"))
            self._sgd.state[parameter]["momentum_buffer"] = read(f"{name}.momentum").to(parameter.device)

    @torch.no_grad()
    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Thresholds less what the round began with."""
        for name, layer in self._layers.items():
            yield name + THRESHOLD, (layer.threshold.cpu() - self._start[name])[None].numpy()

    def density(self) -> float:
        """Part of all weights whose row is on."""
        on = sum(int(layer.on().sum()) * layer.in_features for layer in self._layers.values())
        return on / sum(layer.weight.numel() for layer in self._layers.values())

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, layer in self._layers.items():
            yield f"{name}/weight", layer.weight
            yield f"{name}/threshold", layer.threshold


class Masked(nn.Module):
    """A target layer with weights of its own and a threshold for each row.

    Args:
        own: The layer as it was built.
        padding: What the model's layers share about a micro-batch.
    """

    bias: nn.Parameter | None

    def __init__(self, own: SubspaceLinear, padding: Padding) -> None:
        super().__init__()
        device = own.base.device
        self.in_features, self.out_features = own.in_features, own.out_features
        # Not a part of this module: nothing of it is computed with.
        self.own = (own,)
        self.weight = nn.Parameter(torch.empty(own.out_features, own.in_features, device=device))
        self.threshold = nn.Parameter(torch.zeros(own.out_features, device=device))
        self.seen = nn.Parameter(torch.zeros(own.out_features, device=device), requires_grad=False)
        self.register_parameter("bias", own.bias)
        self._padding, self._compute_dtype = padding, own.compute_dtype

    def on(self) -> Tensor:
        """Which rows are, (m,)."""
        return self.weight.detach().abs().mean(dim=1) > self.threshold.detach()

    @torch.no_grad()
    def keep_some(self) -> None:
        """Begin again without thresholds, where they have switched nearly all rows off."""
        if float(self.on().float().mean()) < _LEAST_DENSITY:
            self.threshold.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) to (..., m)."""
        flat = x.reshape(-1, self.in_features)
        return self._padding.left_out(flat, self._computed).view(*x.shape[:-1], self.out_features)

    def _computed(self, x: Tensor) -> Tensor:
        """(t, n) to (t, m)."""
        weight: Tensor = _Switched.apply(self.weight, self.threshold)  # type: ignore[no-untyped-call]
        y = F.linear(x.to(self._compute_dtype), weight.to(self._compute_dtype)).to(x.dtype)
        return y if self.bias is None else y + self.bias


class _Switched(torch.autograd.Function):
    """W (m, n) with the rows that are off as zeros."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, threshold: Tensor) -> Tensor:
        above = weight.abs().mean(dim=1) - threshold
        ctx.save_for_backward(weight, above)
        return weight * (above > 0)[:, None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weight, above = ctx.saved_tensors
        through = (gradient * weight).sum(dim=1) * (above.abs() <= 1)
        of_weight = gradient * (above > 0)[:, None]
        return of_weight.addcmul_(weight.sign(), through[:, None], value=1 / weight.shape[1]), -through
