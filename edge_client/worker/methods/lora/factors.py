# SPDX-License-Identifier: Apache-2.0
"""The LoRA family's client half: PEFT's layer on the frozen base, W + alpha / r B A, with A from the run's seed and B
from zero.

The base under PEFT's layer is our own frozen product, so that all methods compute with the same 8-bit weights. Where a
published state brings factors that the next round merges into the base, they are a second adapter until then."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from edge_client.worker.methods.interface import Kept
from edge_client.worker.methods.named import OneAdam
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear, Weight
from edge_client.worker.model.standin import StandIn, unbiased
from fedcore.model.state import PublishedState
from fedcore.numbers.accumulator import RowScaled
from fedcore.round.plan import Plan
from fedcore.round.training import DOWN, UP, Factor, FactorTraining, StackedTraining, Training

__all__ = ["LoRA"]

_ADAPTER = "default"
_STACK = "stack"


class LoRA(OneAdam):
    """PEFT's LoRA around each target layer; what a round does not train has no gradient."""

    supersedes: ClassVar[bool] = True
    subspaces: tuple[int, ...] = ()

    def __init__(self, model: BuiltModel, training: FactorTraining, artefact: None = None) -> None:
        del artefact
        self._training = training
        self.rank = training.rank
        self._wrapped: dict[str, LoraLinear] = {}
        names = {id(module): name for name, module in model.module.named_modules()}
        config = LoraConfig(r=training.rank, lora_alpha=training.alpha, lora_dropout=0.0, bias="none")
        self._factors: dict[str, nn.Parameter] = {}
        self._start: dict[str, Tensor] = {}
        self._seeds = training.seeds
        for name, own in model.layers.items():
            wrapped = _around(own, config)
            parent, _, last = names[id(own)].rpartition(".")
            setattr(model.module.get_submodule(parent), last, wrapped)
            self._wrapped[name] = wrapped
            self._factors[f"{name}/A"] = wrapped.lora_A[_ADAPTER].weight
            self._factors[f"{name}/B"] = wrapped.lora_B[_ADAPTER].weight
        self._adam: torch.optim.Adam | None = None

    @property
    def local(self) -> Mapping[str, nn.Parameter]:
        """The factors that train and are not shared."""
        return {
            name: parameter for name, parameter in self._factors.items() if _factor_of(name) in self._training.local
        }

    def outline(self, training: Training) -> Kept:
        """The factors, those that train in any round with gradients and moments, and what a round began with.

        For A's gradient a pass keeps the layer's input.
        """
        assert isinstance(training, FactorTraining)
        ever = (*training.trained, *training.shared)
        trained = [parameter.requires_grad_(_factor_of(name) in ever) for name, parameter in self._factors.items()]
        numbers = sum(parameter.numel() for parameter in trained if parameter.requires_grad)
        shared = sum(
            parameter.numel() for name, parameter in self._factors.items() if _factor_of(name) in training.shared
        )
        own = [wrapped.get_base_layer() for wrapped in self._wrapped.values()]
        return Kept(
            # As published, where entries go on; those that are merged are gone by the time that training begins.
            state_bytes=0 if isinstance(training, StackedTraining) else 2 * shared,
            trained_bytes=2 * 4 * sum(parameter.numel() for parameter in trained) + 4 * numbers,
            moments_bytes=2 * 4 * numbers,
            block_bytes=max(layer.compute_dtype.itemsize for layer in own),
        )

    @torch.no_grad()
    def install(self, state: PublishedState) -> None:
        """First values plus published changes; beside them what the next merge takes, if there is anything."""
        self._adam, self._seeds = None, state.seeds
        seed = self._training.first_seed(state.seeds)
        for name, wrapped in self._wrapped.items():
            _stack(wrapped, state.entries.get(name + UP), state.entries.get(name + DOWN))
        for name, parameter in self._factors.items():
            start = self._first(name, seed)
            if name in state.entries:
                start += torch.from_numpy(state.entries[name].values())
            parameter.copy_(start.to(parameter.device))
            parameter.grad = None
            self._start[name] = start

    @torch.no_grad()
    def _begin_with_own(self, seed: int) -> None:
        """An A of this node's own; B is zero, so the model stays as it is."""
        for name, parameter in self._factors.items():
            if _factor_of(name) == "A":
                self._start[name] = self._first(name, seed)
                parameter.copy_(self._start[name].to(parameter.device))

    def open(self, plan: Plan, node: str, rank: int) -> None:
        """One Adam for the factors that train."""
        training = plan.training
        assert isinstance(training, FactorTraining)
        self._training = training
        if isinstance(training, StackedTraining) and training.own:
            self._begin_with_own(training.node_seed(self._seeds, node))
        for name, parameter in self._factors.items():
            parameter.requires_grad_(_factor_of(name) in training.trained)
        self._adam = torch.optim.Adam([parameter for _, parameter in self._trained()], lr=training.learning_rate)

    @torch.no_grad()
    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The shared factors that trained, less what the round began with."""
        for name, parameter in self._trained():
            if _factor_of(name) in self._training.shared:
                yield name, (parameter.cpu() - self._start[name]).numpy()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return (
            (name, parameter) for name, parameter in self._factors.items() if _factor_of(name) in self._training.trained
        )

    def _first(self, name: str, seed: int) -> Tensor:
        parameter = self._factors[name]
        if _factor_of(name) == "B":
            return torch.zeros(parameter.shape)
        return torch.from_numpy(self._training.first_factor(name, parameter.shape[1], seed))


def _stack(wrapped: LoraLinear, up: RowScaled | None, down: RowScaled | None) -> None:
    """Have a layer compute with a product of published factors too, or with none."""
    if _STACK in wrapped.lora_A:
        wrapped.set_adapter(_ADAPTER)
        wrapped.delete_adapter(_STACK)
    if up is None or down is None or not up.q.size:
        return
    rank = len(down.q)
    wrapped.update_layer(
        _STACK, rank, rank, LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, init_lora_weights=False)
    )
    wrapped.lora_A[_STACK].weight.copy_(torch.from_numpy(down.values()))
    wrapped.lora_B[_STACK].weight.copy_(torch.from_numpy(up.values()))
    wrapped.set_adapter([_ADAPTER, _STACK])
    wrapped.set_requires_grad(_STACK, requires_grad=False)


def _around(own: SubspaceLinear, config: LoraConfig) -> LoraLinear:
    # Made where they belong: fake tensors cannot be moved as modules.
    with warnings.catch_warnings(), own.base.device:
        # PEFT warns of any base that it does not know by name; it needs no more of one than its sizes and its product.
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        return _Around(own, _ADAPTER, config, r=config.r, lora_alpha=config.lora_alpha)


class _Around(LoraLinear):  # type: ignore[misc]
    """PEFT's layer, which stays where it is made, and whose `weight` is with what was learned."""

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Not moved."""

    @property
    def weight(self) -> StandIn:
        """For modules that compute with a layer's weight themselves."""
        return StandIn(self)

    @property
    def base(self) -> Weight:
        """The frozen weight; says where this layer lies."""
        own: SubspaceLinear = self.get_base_layer()
        return own.base

    def unbiased(self, x: Tensor) -> Tensor:
        """x (..., n) times the whole weight's transpose."""
        own: SubspaceLinear = self.get_base_layer()
        y = unbiased(own, x)
        for name in self.active_adapters:
            y = y + self.lora_B[name](self.lora_A[name](x)) * self.scaling[name]
        return y


def _factor_of(name: str) -> Factor:
    return "A" if name.endswith("/A") else "B"
