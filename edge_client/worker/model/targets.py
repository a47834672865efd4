# SPDX-License-Identifier: Apache-2.0
"""Which parameters of a model are weights of layers that can train in subspaces, and how each lies in the checkpoint.

Linear layers, GPT-2's transposed ones (`Conv1D`), and the experts of a mixture, each a layer of its own. What routes
tokens to experts stays frozen: a router that moves on one node's text would send another node's text elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edge_client.worker.architecture.names import Stored
from fedcore.weights.checkpoint import Tensors
from fedcore.weights.schema import LayerSpec

__all__ = ["Target", "targets_of"]


@dataclass(frozen=True)
class Target:
    """A parameter that layers stand for.

    Attributes:
        parameter: Its name in the model.
        module: The module that it belongs to.
        layers: One layer; or of each expert those of its rows, from the first to the last.
        transposed: Whether the module looks at it as (columns, rows).
    """

    parameter: str
    module: nn.Module
    layers: tuple[tuple[LayerSpec, ...], ...]
    transposed: bool = False

    @property
    def experts(self) -> bool:
        """Whether it is a tensor of experts."""
        return not (isinstance(self.module, nn.Linear) or _is_conv1d(self.module))


def targets_of(model: nn.Module, names: Mapping[str, Stored | None], checkpoint: Tensors) -> Iterator[Target]:
    """Every parameter of a model that could be trained in subspaces, in the model's order.

    Args:
        model: Of transformers, with parameters of any kind.
        names: Where its parameters lie.
        checkpoint: Their shapes.
    """
    routers = set(_routers(model))
    for place, module in model.named_modules():
        if module in routers:
            continue
        for last, parameter in module.named_parameters(prefix=place, recurse=False):
            stored = names.get(last)
            if stored is None or stored.conversion:
                continue
            if _is_linear(module) and last.endswith(".weight") and stored.single:
                rows, columns = _shape_of(module)
                transposed = _is_conv1d(module)
                name = stored.name.removesuffix(".weight")
                tensor = "" if stored.name.endswith(".weight") else stored.name
                yield Target(last, module, ((LayerSpec(name, rows, columns, tensor, None, transposed),),))
            elif _is_experts(module, parameter):
                transposed = bool(getattr(module, "is_transposed", False))
                yield Target(last, module, tuple(_experts(parameter, stored, checkpoint, transposed)), transposed)


def _shape_of(module: Any) -> tuple[int, int]:
    """Rows and columns of a linear module's W (out, in)."""
    if _is_conv1d(module):
        return int(module.nf), int(module.nx)
    return int(module.out_features), int(module.in_features)


def _is_linear(module: nn.Module) -> bool:
    """A module that does what a linear layer does, and nothing else: shown by a small twin where it has code of its own
    (Falcon's), since a name says nothing."""
    if not isinstance(module, nn.Linear):
        return _is_conv1d(module)
    return type(module).forward is nn.Linear.forward or _twin_is_linear(module)


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, whose weight lies transposed. By its place: a worker imports of transformers what a model
    needs."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def _twin_is_linear(module: nn.Linear) -> bool:
    twin, w, b = copy.copy(module), torch.arange(15.0).view(5, 3).sin(), torch.arange(5.0).cos()
    twin._parameters = dict.fromkeys(module._parameters)
    twin._parameters["weight"] = nn.Parameter(w)
    if module.bias is not None:
        twin._parameters["bias"] = nn.Parameter(b)
    x = torch.arange(12.0).view(2, 2, 3).sin() * 4.0
    try:
        with torch.no_grad():
            said = twin(x)
    except (RuntimeError, TypeError, AttributeError, ValueError):
        return False
    expected = nn.functional.linear(x, w, None if module.bias is None else b)
    return isinstance(said, torch.Tensor) and said.shape == expected.shape and torch.allclose(said, expected, atol=1e-6)


def _is_experts(module: nn.Module, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 3 and "Experts" in type(module).__name__


def _experts(
    parameter: nn.Parameter, stored: Stored, checkpoint: Tensors, transposed: bool
) -> Iterator[tuple[LayerSpec, ...]]:
    for index in range(parameter.shape[0]):
        if stored.single:
            rows, columns = reversed(parameter.shape[1:]) if transposed else parameter.shape[1:]
            name = f"{stored.name.removesuffix('.weight')}.{index}"
            yield (LayerSpec(name, rows, columns, stored.name, index, transposed),)
        else:
            specs = []
            for part in stored.parts:
                shape = checkpoint.tensors[part[index]].shape
                rows, columns = reversed(shape) if transposed else shape
                tensor = "" if part[index].endswith(".weight") else part[index]
                name = part[index].removesuffix(".weight")
                specs.append(LayerSpec(name, rows, columns, tensor, None, transposed))
            yield tuple(specs)


def _routers(model: nn.Module) -> Iterator[nn.Module]:
    """Linear layers with an output for each expert, beside the experts."""
    for module in model.modules():
        counts = {
            parameter.shape[0]
            for child in module.children()
            for parameter in child.parameters(recurse=False)
            if _is_experts(child, parameter)
        }
        for child in module.children() if counts else ():
            for one in child.modules():
                if isinstance(one, nn.Linear) and one.out_features in counts and not _holds_experts(child):
                    yield one


def _holds_experts(module: nn.Module) -> bool:
    return any(_is_experts(module, parameter) for parameter in module.parameters(recurse=False))
