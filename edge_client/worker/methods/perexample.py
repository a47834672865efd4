# SPDX-License-Identifier: Apache-2.0
"""The gradient of each example by itself, where each is to be cut before they are added up (DP-SGD, Abadi et al., arXiv
1607.00133).

What a layer keeps of a pass is enough: of an example's tokens, z (t, r) and the gradient gy (t, m) of what the layer
gave, its factor's gradient is gy^T z (Goodfellow, arXiv 1510.01799). Of a whole weight it would be (m, n) for each
example, which is why others compute its norm alone and go back a second time (ghost clipping, Li et al., arXiv
2110.05679); of a factor it is (m, r), smaller than gy wherever an example has more than r tokens. So it is kept, and
one pass is enough.

What tensors trained whole need are heads of linear layers: their inputs are a vector or two for each example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from fedcore.errors import ConfigError

__all__ = ["ByExample", "ExampleGradients"]


@runtime_checkable
class ByExample(Protocol):
    """A half whose gradients can be had by example; what it has once a round is open that asks for them."""

    examples: ExampleGradients | None


class ExampleGradients:
    """Gradients of a micro-batch's examples, for all that trains: taken in the backward pass, until the next pass.

    Args:
        model: Built. Its layers' factors get no gradient by autograd any more, until `end`.

    Raises:
        ConfigError: Something is trained whole that is no linear layer.
    """

    def __init__(self, model: BuiltModel) -> None:
        self._model, self._pass = model, -1
        self._layers: dict[str, Tensor] = {}
        self._wholes: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        for layer in model.layers.values():
            layer.by_example = self._product
        for module, weight, bias in _linears(model):
            self._hooks.append(module.register_forward_hook(self._watching(weight, bias)))

    def end(self) -> None:
        """Have the model as it was."""
        for layer in self._model.layers.values():
            layer.by_example = None
        for hook in self._hooks:
            hook.remove()
        self._layers, self._wholes, self._hooks = {}, {}, []

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What trains now, by name."""
        for name, layer in self._model.layers.items():
            if layer.factor is not None:
                yield name, layer.factor
        yield from self._model.tensors.items()

    def found(self) -> dict[str, Tensor]:
        """Of the last pass: by name (examples, ...), as the parameter's shape after the first."""
        shapes = {name: parameter.shape for name, parameter in self.parameters()}
        found = {**self._layers, **self._wholes}
        return {name: own.view(-1, *shapes[name]) for name, own in found.items()}

    def _product(self, layer: SubspaceLinear, z: Tensor, bias: Tensor | None) -> Tensor:
        """In a layer's forward pass, in place of bias + z B^T."""
        y: Tensor = _Product.apply(z, layer.factor, bias, layer, self)  # type: ignore[no-untyped-call]
        return y

    def take(self, layer: SubspaceLinear, gy: Tensor, z: Tensor) -> None:
        """In a layer's backward pass: the gradient of its factor by example, (examples, m, r).

        Args:
            layer: Whose.
            gy: (t, m).
            z: (t, r).
        """
        lengths = self._lengths(layer.name, gy.shape[0])
        if len(set(lengths)) == 1:
            shape = (len(lengths), lengths[0], -1)
            own = torch.bmm(gy.reshape(shape).transpose(1, 2), z.reshape(shape))
        else:
            pairs = zip(torch.split(gy, lengths), torch.split(z, lengths), strict=True)
            own = torch.stack([some.T @ others for some, others in pairs])
        self._add(self._layers, layer.name, own)

    def _watching(self, weight: str | None, bias: str | None) -> Callable[..., None]:
        def watch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                x = inputs[0].detach()
                output.register_hook(lambda gy: self._take_whole(weight, bias, x, gy))  # type: ignore[no-untyped-call]

        return watch

    def _take_whole(self, weight: str | None, bias: str | None, x: Tensor, gy: Tensor) -> None:
        examples = self._model.padding.examples
        if x.shape[0] != examples:
            raise ConfigError(f"a head of {x.shape[0]} rows for {examples} examples", place="privacy.example")
        x, gy = x.reshape(examples, -1, x.shape[-1]).float(), gy.reshape(examples, -1, gy.shape[-1]).float()
        if weight is not None:
            self._add(self._wholes, weight, torch.bmm(gy.transpose(1, 2), x))
        if bias is not None:
            self._add(self._wholes, bias, gy.sum(dim=1))

    def _add(self, kept: dict[str, Tensor], name: str, own: Tensor) -> None:
        """A module that a pass goes through twice has both parts."""
        if self._pass != self._model.padding.passes:
            self._pass = self._model.padding.passes
            self._layers.clear()
            self._wholes.clear()
        kept[name] = kept[name] + own if name in kept else own

    def _lengths(self, name: str, rows: int) -> list[int]:
        lengths = self._model.padding.lengths(rows)
        if lengths is None:
            raise ConfigError(
                f"{rows} rows that are no micro-batch's tokens: which example each is of cannot be told",
                place=name,
                remedy="use privacy.node with this model",
            )
        return lengths


class _Product(torch.autograd.Function):
    """bias + z B^T, whose backward pass gives the factor's gradient by example."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, factor: Tensor, bias: Tensor | None, layer: SubspaceLinear, taking: ExampleGradients
    ) -> Tensor:
        ctx.save_for_backward(z)
        ctx.layer, ctx.taking = layer, taking
        return z @ factor.T if bias is None else torch.addmm(bias, z, factor.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[None, None, None, None, None]:
        (z,) = ctx.saved_tensors
        ctx.taking.take(ctx.layer, gy, z)
        return None, None, None, None, None


def _linears(model: BuiltModel) -> Iterator[tuple[nn.Linear, str | None, str | None]]:
    """The linear layers whose tensors train whole, with the tensors' names; of a model of fake tensors, their places.

    Raises:
        ConfigError: Something else trains whole.
    """
    names = {id(parameter): name for name, parameter in model.tensors.items()}
    factors = {id(layer.factor) for layer in model.layers.values()}
    covered = set[int]()
    for place, module in model.module.named_modules():
        if isinstance(module, nn.Linear):
            own = {key: one for key, one in module.named_parameters(recurse=False) if one.requires_grad}
            found = {key: names.get(id(one), f"{place}.{key}") for key, one in own.items()}
            covered |= {id(one) for one in own.values()}
            if found:
                yield module, found.get("weight"), found.get("bias")
    for name, one in model.module.named_parameters():
        if one.requires_grad and id(one) not in covered | factors:
            raise ConfigError(
                f"{name} is trained whole and of no linear layer: it has no gradient for each example",
                place="privacy.example",
                remedy="use privacy.node with this model",
            )
