# SPDX-License-Identifier: Apache-2.0
"""An adapter on a model: its tensors by name, in the model that trains, and before there is one.

What shapes a type has on a model, and what it begins with, says PEFT itself, asked twice with other seeds: numbers that
are the same everywhere are a constant, numbers that differ between the two are drawn by chance and have a spread. What
it says is written into the schema, and every node draws from the run's seed; none trains from what its own PEFT drew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from edge_client.worker.adapters.layers import own_tensors, wrapped
from edge_client.worker.adapters.tokens import encoder_of, stand_before
from edge_client.worker.architecture.configuration import read_config
from edge_client.worker.model.built import BuiltModel
from fedcore.config.adapters import AnyAdapter, LayerAdapter, VirtualTokens
from fedcore.config.sections import TaskSection
from fedcore.errors import ModelError
from fedcore.weights.schema import AdapterTensor, ModelSchema

__all__ = ["Attached", "attach", "with_adapter"]

_LENGTHS = "/lora_magnitude_vector.weight"


@dataclass(frozen=True)
class Attached:
    """An adapter in a model.

    Attributes:
        tensors: What it adds, by the name that the schema has for it.
        layers: PEFT's layers by the target layer's name; none of virtual tokens.
    """

    tensors: Mapping[str, Tensor]
    layers: Mapping[str, Any] = field(default_factory=dict)


def attach(model: BuiltModel, adapter: AnyAdapter) -> Attached:
    """Put an adapter into a built model, whose other parameters stay as they are.

    Raises:
        ModelError: PEFT is not installed or makes another adapter than the schema says, or the model has no place for
            it.
    """
    if isinstance(adapter, VirtualTokens):
        tensors = {f"/{name}": tensor for name, tensor in stand_before(model, adapter).named_parameters()}
        return Attached(tensors)
    assert isinstance(adapter, LayerAdapter)
    shapes = {
        name: (layer.out_features, layer.in_features) for name, layer in model.layers.items() if adapter.takes(name)
    }
    layers = wrapped(shapes, adapter)
    for name, layer in layers.items():
        layer.get_base_layer().own = model.layers[name]
    model.put_around(layers)
    return Attached(dict(_named(layers)), layers)


def _named(layers: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """What does not train is shared by all layers, and has a name without a layer."""
    for layer, wrapped_layer in layers.items():
        for name, tensor in own_tensors(wrapped_layer).items():
            yield f"{layer}/{name}" if tensor.requires_grad else f"/{name}", tensor


def with_adapter(schema: ModelSchema, folder: Path, task: TaskSection, adapter: AnyAdapter | None) -> ModelSchema:
    """A model's schema with an adapter's tensors; as it is, where there is no adapter.

    Args:
        schema: Of the model.
        folder: With its configuration.
        task: Of the run.
        adapter: Of the method.

    Raises:
        ModelError: PEFT is not installed, or cannot make it for this model; or it begins with numbers that nobody else
            could draw.
        ConfigError: It is on no layer.
    """
    if adapter is None:
        return schema
    one, other = (_asked(schema, folder, task, adapter, seed) for seed in (0, 1))
    tensors = [_described(name, tensor, other[name]) for name, tensor in one.items()]
    return msgspec.structs.replace(schema, adapter=tuple(tensors))


def _asked(schema: ModelSchema, folder: Path, task: TaskSection, adapter: AnyAdapter, seed: int) -> dict[str, Tensor]:
    if isinstance(adapter, VirtualTokens):
        encoder = encoder_of(adapter, read_config(folder, task), seed)
        return {f"/{name}": tensor for name, tensor in encoder.named_parameters()}
    assert isinstance(adapter, LayerAdapter)
    shapes = {layer.name: (layer.rows, layer.columns) for layer in schema.layers if adapter.takes(layer.name)}
    return dict(_named(wrapped(shapes, adapter, seed)))


@torch.no_grad()
def _described(name: str, tensor: Tensor, again: Tensor) -> AdapterTensor:
    shape, trained = tuple(tensor.shape), tensor.requires_grad
    if name.endswith(_LENGTHS):
        return AdapterTensor(name, shape, trained, lengths_of=name.removesuffix(_LENGTHS))
    if not tensor.is_floating_point():
        raise ModelError(f"{name} does not hold floating-point numbers", place="method.peft")
    start = float(tensor.flatten()[0])
    if bool((tensor == start).all()):
        return AdapterTensor(name, shape, trained, start=start)
    if torch.equal(tensor, again):
        raise ModelError(f"PEFT begins {name} with numbers of its own", place="method.peft")
    # Uniform ones of the same deviation, known to a few per cent from so many draws.
    deviation = float(torch.cat([tensor.flatten(), again.flatten()]).std())
    return AdapterTensor(name, shape, trained, spread=float(f"{math.sqrt(3) * deviation:.2g}"))
