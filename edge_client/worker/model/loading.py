# SPDX-License-Identifier: Apache-2.0
"""From a Hugging Face folder to a model whose target layers are `SubspaceLinear`, layer by layer.

The model is built without weights; each target layer then gets its quantised base and each other tensor its numbers,
one at a time, so that the float model is never whole in memory. Dropout is off: with it, results would depend on the
micro-batch, which is the device's own choice."""

from __future__ import annotations

import mmap
from collections import defaultdict
from collections.abc import Container
from types import MappingProxyType
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn

from edge_client.worker.architecture.configuration import empty_model
from edge_client.worker.architecture.names import Stored
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.describing import describe, opened
from edge_client.worker.model.embedding import FrozenEmbedding
from edge_client.worker.model.head import OutputHead, Shaping, shaping_of
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.padding import Padding
from edge_client.worker.model.standin import Experts
from edge_client.worker.model.targets import Target, targets_of
from edge_client.worker.model.weights import FloatWeight, Int8Weight, Scratch, tensor_of
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import ModelError
from fedcore.model.base import LayerWeight
from fedcore.weights.checkpoint import Tensors
from fedcore.weights.initial import start_value
from fedcore.weights.offsite import read_map
from fedcore.weights.schema import LayerSpec, ModelSchema

__all__ = ["LARGE_ELEMENTS", "Source", "build", "describe", "empty_model", "float_weight", "install_weight"]

# Smaller tables are not worth a module of their own.
LARGE_ELEMENTS = 1_000_000


class Source(Protocol):
    """What a model is built from: a `Base`, or the shape of one."""

    @property
    def checkpoint(self) -> Tensors:
        """All tensors."""
        ...

    schema: ModelSchema

    def layer(self, layer: LayerSpec, *, mapped: bool = False) -> LayerWeight:
        """A target layer's weight."""
        ...

    def frozen(self, layer: LayerSpec) -> LayerWeight:
        """The weight of a layer that the schema does not train, held as target layers are."""
        ...


def build(
    base: Source,
    task: TaskSection,
    run_seed: int,
    torch_device: torch.device,
    compute_dtype: torch.dtype,
    *,
    mapped: bool = False,
    away: Container[str] = (),
) -> BuiltModel:
    """The task's model on a base: target layers frozen behind `SubspaceLinear`, schema tensors trainable, the rest
    frozen.

    Large embeddings stay in the dtype that they are stored in. With `mapped`, they and the target layers stay on disk;
    target layers named in `away` do in any case.

    Returns:
        The model in training mode, without dropout.

    Raises:
        ModelError: The folder does not have what the schema trains, or is of a kind that is refused.
    """
    return _Building(base, task, run_seed, torch_device, compute_dtype, mapped, away).model()


class _Building:
    def __init__(
        self,
        base: Source,
        task: TaskSection,
        run_seed: int,
        torch_device: torch.device,
        compute_dtype: torch.dtype,
        mapped: bool,
        away: Container[str],
    ) -> None:
        self._base, self._task, self._run_seed = base, task, run_seed
        self._torch_device, self._compute_dtype = torch_device, compute_dtype
        # Another device gets copies: there is nothing to be mapped.
        self._mapped = mapped and torch_device.type == "cpu"
        self._away: Container[str] = away if torch_device.type == "cpu" else ()
        self._checkpoint, schema = base.checkpoint, base.schema
        pad = None if schema.pad_token_id is msgspec.UNSET else schema.pad_token_id
        self._module, self._names = opened(base.checkpoint, task, pad_token_id=pad)
        self._specs = {layer.name: layer for layer in schema.layers}
        self._tensors = {tensor.name: tensor for tensor in schema.tensors}
        self._emulator = read_map(base.checkpoint.folder)
        self._scratch, self._padding = Scratch(), Padding()
        # Places with a weight, by which weight it is; all of it is there while its id is asked for.
        self._sharing: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
        for place, module in self._module.named_modules(remove_duplicate=False):
            self._sharing[id(getattr(module, "weight", None))].append((place, module))
        self._layers: dict[str, SubspaceLinear] = {}
        self._trained: dict[str, nn.Parameter] = {}
        self._places: defaultdict[int, list[str]] = defaultdict(list)
        self._mappings: list[_Mapped] = []
        self._output = self._module.get_output_embeddings() if task_of(task).outputs() is None else None
        self._shaping = Shaping() if self._output is None else shaping_of(self._module)

    def model(self) -> BuiltModel:
        """Build it."""
        module = self._module
        for target in list(targets_of(module, self._names, self._checkpoint)):
            # In the schema's words of it, whatever this machine's transformers would call a target.
            specs = [spec for parts in target.layers for spec in parts]
            if all(self._specs.get(spec.name) == spec for spec in specs):
                self._place_target(target)
            elif self._emulator is not None and not any(self._emulator.trains(spec.stored) for spec in specs):
                # Of an emulator's middle: else it would be in memory as floats.
                self._place_target(target, frozen=True)
        # Looked for once: a model has hundreds of parameters, and each may be tied to several places.
        parameters = list(module.named_parameters())
        for name, parameter in module.named_parameters(remove_duplicate=False):
            self._places[id(parameter)].append(name)
        for name, parameter in parameters:
            if name in self._names:
                self._place_parameter(name, parameter)
        for name, buffer in list(module.named_buffers()):
            if (stored := self._names.get(name)) is not None:
                _replace(module, name, self._numbers(stored).to(buffer.dtype))
        wanted = {**self._specs, **self._tensors}
        if missing := wanted.keys() - self._layers.keys() - self._trained.keys():
            raise ModelError(
                f"the plan trains {min(missing)!r}, which this model does not have",
                place=str(self._checkpoint.folder),
            )
        if left := [name for name, parameter in module.named_parameters() if parameter.is_meta]:
            raise ModelError(f"{left[0]!r} has no numbers", place=str(self._checkpoint.folder))
        module.to(self._torch_device)
        module.train()
        layers, trained = MappingProxyType(self._layers), MappingProxyType(self._trained)
        return BuiltModel(module, layers, trained, self._padding, self._output_head(), self._base.schema.adapter)

    def _output_head(self) -> OutputHead | None:
        if self._output is None:
            return None
        output: Any = self._module.get_output_embeddings()
        mapping = next((mapping for own, mapping in self._mappings if own is output.weight), None)
        return OutputHead(output.weight, getattr(output, "bias", None), self._shaping, mapping)

    def _place_target(self, target: Target, *, frozen: bool = False) -> None:
        place, _, last = target.parameter.rpartition(".")
        make = self._frozen_layer if frozen else self._layer
        if target.experts:
            made = [[make(spec, None, padding=None) for spec in parts] for parts in target.layers]
            delattr(target.module, last)
            setattr(target.module, last, Experts(made, transposed=target.transposed))
            return
        spec = target.layers[0][0]
        bias = getattr(target.module, "bias", None)
        value = None if bias is None else self._numbers(self._names[f"{place}.bias"])
        own = make(spec, value, padding=self._padding)
        for other, module in self._sharing[id(target.module.weight)]:
            if self._module.get_submodule(other) is not module:
                continue
            if module is not target.module:
                # Tied: one layer in two places, with one bias or none.
                if not isinstance(module, type(target.module)):
                    continue
                if getattr(module, "bias", None) is not bias:
                    raise ModelError(f"{other} shares its weight with {place}, but not its bias")
            _replace(self._module, other, own)

    def _layer(self, spec: LayerSpec, bias: Tensor | None, *, padding: Padding | None) -> SubspaceLinear:
        mapped = self._mapped or spec.name in self._away
        weight = float_weight(self._base.layer(spec, mapped=mapped), self._torch_device)
        own = SubspaceLinear(
            spec.name, weight, bias, compute_dtype=self._compute_dtype, scratch=self._scratch, padding=padding
        )
        self._layers[spec.name] = own
        return own

    def _frozen_layer(self, spec: LayerSpec, bias: Tensor | None, *, padding: Padding | None) -> SubspaceLinear:
        """A layer in which nothing is ever installed. Its blocks come from the allocator: what layers share is emptied
        with every memory plan, by those who train."""
        weight = float_weight(self._base.frozen(spec), self._torch_device)
        return SubspaceLinear(spec.name, weight, bias, compute_dtype=self._compute_dtype, padding=padding)

    def _place_parameter(self, name: str, parameter: nn.Parameter) -> None:
        stored = self._names[name]
        own = stored.name if stored is not None and stored.single else name
        spec = self._tensors.get(own)
        if spec is not None:
            value = torch.from_numpy(start_value(self._checkpoint, spec, self._run_seed)).to(self._torch_device)
            self._trained[spec.name] = nn.Parameter(value)
            self._replace_all(parameter, self._trained[spec.name])
        elif stored is not None and stored.single and self._stays_stored(name, parameter):
            numbers, mapping = tensor_of(self._checkpoint.read(stored.name, mapped=self._mapped))
            weight = nn.Parameter(numbers.to(self._torch_device), requires_grad=False)
            self._place_embedding(parameter, weight, mapping)
            self._mappings.append((weight, mapping))
        else:
            if stored is None:
                raise ModelError(
                    f"the checkpoint has no weights for {name!r}",
                    place=str(self._checkpoint.folder),
                    remedy="use a complete checkpoint",
                )
            self._replace_all(parameter, nn.Parameter(self._numbers(stored), requires_grad=False))

    def _replace_all(self, old: nn.Parameter, new: nn.Parameter) -> None:
        """In every place where a parameter is tied to."""
        for name in self._places[id(old)]:
            _replace(self._module, name, new)

    def _stays_stored(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a frozen tensor is a large embedding: a plain table of rows, or the output embedding of which only
        the weight is used."""
        module = self._module.get_submodule(name.rpartition(".")[0])
        table = type(module) is nn.Embedding or (self._output is not None and module is self._output)
        return table and parameter.numel() >= LARGE_ELEMENTS and name.endswith(".weight")

    def _place_embedding(self, old: nn.Parameter, new: nn.Parameter, mapping: mmap.mmap | None) -> None:
        for name in self._places[id(old)]:
            place = name.rpartition(".")[0]
            if type(self._module.get_submodule(place)) is nn.Embedding:
                _replace(self._module, place, FrozenEmbedding(new, mapping))
            else:
                _replace(self._module, name, new)

    def _numbers(self, stored: Stored | None) -> Tensor:
        assert stored is not None
        return stored.numbers(self._checkpoint).to(self._torch_device)


def float_weight(weight: LayerWeight, torch_device: torch.device) -> Int8Weight | FloatWeight:
    """A base's layer as the module that `SubspaceLinear` computes with."""
    numbers, mapping = tensor_of(weight[0])
    own = numbers.to(torch_device)
    if own is not numbers:
        # A copy on another device: its file is needed no more.
        mapping = None
    if weight[1] is not None:
        return Int8Weight(own, torch.from_numpy(weight[1]).to(torch_device), mapping)
    return FloatWeight(own, mapping)


def install_weight(layer: SubspaceLinear, weight: LayerWeight) -> None:
    """Replace a layer's base, after a merge."""
    layer.replace_base(float_weight(weight, layer.base.device))


_Mapped = tuple[nn.Parameter, mmap.mmap | None]
"""A weight, and where it is mapped from."""


def _replace(model: nn.Module, name: str, new: nn.Module | nn.Parameter | Tensor) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
