# SPDX-License-Identifier: Apache-2.0
"""From a Hugging Face folder to a model whose target layers are `SubspaceLinear`, layer by layer.

The model is built without weights; each target layer then gets its quantised base and each other tensor its numbers,
one at a time, so that the float model is never whole in memory. Dropout is off: with it, results would depend on the
micro-batch, which is the device's own choice."""

from __future__ import annotations

import fnmatch
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.embedding import FrozenEmbedding
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.padding import Padding
from edge_client.worker.model.weights import FloatWeight, Int8Weight, Scratch, tensor_of
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import ModelError
from fedcore.model.base import LayerWeight
from fedcore.weights.checkpoint import Tensors, to_float32
from fedcore.weights.initial import start_value
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec, is_target

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


def describe(checkpoint: Tensors, task: TaskSection, trained_tensors: tuple[str, ...] = ()) -> ModelSchema:
    """Which layers and tensors of a model are trained for a task.

    Args:
        checkpoint: The model's tensors, or the outline of them.
        task: Decides the head.
        trained_tensors: Patterns of checkpoint tensors trained whole beside the head.

    Raises:
        ModelError: The folder cannot serve, or a pattern matches nothing.
    """
    model = empty_model(checkpoint.folder, task)
    names = _checkpoint_names(model, checkpoint)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    layers, tensors = [], []
    for name, parameter in model.named_parameters():
        stored = names[name]
        if stored is None:
            # A regression has one output; a head's inner layers have biases too.
            start = task.middle if parameter.shape == (1,) else 0.0
            tensors.append(TensorSpec(name, tuple(parameter.shape), in_checkpoint=False, start=start))
        elif any(fnmatch.fnmatch(stored, pattern) for pattern in trained_tensors):
            tensors.append(TensorSpec(stored, tuple(parameter.shape), in_checkpoint=True))
        elif name in linear and is_target(stored, tuple(parameter.shape)):
            layers.append(LayerSpec(stored[: -len(".weight")], *parameter.shape))
    if not layers:
        raise ModelError(
            "no linear layer to train was found",
            place=str(checkpoint.folder),
            remedy="use a model made of nn.Linear blocks",
        )
    for pattern in trained_tensors:
        if not any(fnmatch.fnmatch(tensor.name, pattern) for tensor in tensors):
            raise ModelError(f"no tensor matches {pattern!r}", place="model.trained_tensors")
    wrapped = any(stored is not None and stored != name for name, stored in names.items())
    prefix = f"{model.base_model_prefix}." if wrapped else ""
    return ModelSchema(tuple(layers), tuple(tensors), type(model).__name__, prefix)


def build(
    base: Source,
    task: TaskSection,
    run_seed: int,
    torch_device: torch.device,
    compute_dtype: torch.dtype,
    *,
    mapped: bool = False,
) -> BuiltModel:
    """The task's model on a base: target layers frozen behind `SubspaceLinear`, schema tensors trainable, the rest
    frozen.

    Large embeddings stay in the dtype that they are stored in. With `mapped`, they and the target layers stay on disk.

    Returns:
        The model in training mode, without dropout.
    """
    checkpoint, schema = base.checkpoint, base.schema
    # Another device gets copies: there is nothing to be mapped.
    mapped = mapped and torch_device.type == "cpu"
    model = empty_model(checkpoint.folder, task)
    names = _checkpoint_names(model, checkpoint)
    layers = {layer.name: layer for layer in schema.layers}
    tensors = {tensor.name: tensor for tensor in schema.tensors}
    scratch, padding = Scratch(), Padding()
    own_layers: dict[str, SubspaceLinear] = {}
    trained: dict[str, nn.Parameter] = {}
    mappings: list[_Mapped] = []
    for name, module in list(model.named_modules()):
        stored = names.get(f"{name}.weight")
        layer = layers.get(stored[: -len(".weight")]) if stored else None
        if layer is not None and isinstance(module, nn.Linear):
            weight = float_weight(base.layer(layer, mapped=mapped), torch_device)
            bias = None if module.bias is None else _numbers(checkpoint, names[f"{name}.bias"], torch_device)
            own = SubspaceLinear(
                layer.name, weight, bias, compute_dtype=compute_dtype, scratch=scratch, padding=padding
            )
            _replace(model, name, own)
            own_layers[layer.name] = own
    for name, parameter in list(model.named_parameters()):
        stored = names.get(name)
        spec = tensors.get(stored or name)
        if spec is not None:
            value = torch.from_numpy(start_value(checkpoint, spec, run_seed)).to(torch_device)
            trained[spec.name] = nn.Parameter(value)
            _replace(model, name, trained[spec.name])
        elif parameter.is_meta and stored is not None and _stays_stored(model, name, parameter, task):
            numbers, mapping = tensor_of(checkpoint.read(stored, mapped=mapped))
            mappings.append((_place_embedding(model, name, numbers.to(torch_device), mapping), mapping))
        elif parameter.is_meta:
            value = _numbers(checkpoint, stored, torch_device)
            _replace(model, name, nn.Parameter(value, requires_grad=False))
        else:
            parameter.requires_grad_(False)
    if (missing := layers.keys() - own_layers.keys()) or (missing := tensors.keys() - trained.keys()):
        raise ModelError(
            f"the plan trains {min(missing)!r}, which this model does not have", place=str(checkpoint.folder)
        )
    model.tie_weights()
    model.to(torch_device)
    output_weight = None
    if task_of(task).outputs() is None:
        head = model.get_output_embeddings().weight
        output_weight = FloatWeight(head, _mapping_of(head, mappings))
    model.train()
    return BuiltModel(model, MappingProxyType(own_layers), MappingProxyType(trained), padding, output_weight)


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


def _stays_stored(model: Any, name: str, parameter: nn.Parameter, task: TaskSection) -> bool:
    """Whether a frozen tensor is a large embedding: a plain table of rows, or the output embedding of which only the
    weight is used."""
    module = model.get_submodule(name.rpartition(".")[0])
    output = task_of(task).outputs() is None and module is model.get_output_embeddings()
    return (type(module) is nn.Embedding or output) and parameter.numel() >= LARGE_ELEMENTS and name.endswith(".weight")


_Mapped = tuple[nn.Parameter, mmap.mmap | None]
"""A weight, and where it is mapped from."""


def _place_embedding(model: Any, name: str, value: Tensor, mapping: mmap.mmap | None) -> nn.Parameter:
    weight = nn.Parameter(value, requires_grad=False)
    place = name.rpartition(".")[0]
    if isinstance(model.get_submodule(place), nn.Embedding):
        _replace(model, place, FrozenEmbedding(weight, mapping))
    else:
        _replace(model, name, weight)
    return weight


def _mapping_of(weight: nn.Parameter, mappings: Sequence[_Mapped]) -> mmap.mmap | None:
    """Where an output embedding is mapped from: its own file place, or that of the input embedding that it is tied
    to."""
    return next((mapping for own, mapping in mappings if own is weight), None)


def _numbers(checkpoint: Tensors, name: str | None, torch_device: torch.device) -> Tensor:
    assert name is not None
    return torch.from_numpy(to_float32(checkpoint.read(name), checkpoint.tensors[name].dtype)).to(torch_device)


def empty_model(folder: Path, task: TaskSection) -> Any:
    """The task's architecture with parameters on the meta device and real buffers."""
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"transformers cannot read it: {error}", place=str(folder / "config.json")) from None
    for key in vars(config):
        if key.endswith(("dropout", "dropout_prob", "_pdrop")) and isinstance(getattr(config, key), float):
            setattr(config, key, 0.0)
    auto = AutoModelForCausalLM
    if (outputs := task_of(task).outputs()) is not None:
        auto = AutoModelForSequenceClassification
        config.num_labels = outputs
        if config.pad_token_id is None:
            config.pad_token_id = config.eos_token_id if isinstance(config.eos_token_id, int) else 0
    config.use_cache = False
    try:
        with _parameters_on_meta():
            return auto.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise ModelError(f"no {task.kind} model: {str(error).splitlines()[0]}", place=str(folder)) from None


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters registered inside become shapes without memory; buffers (rotary tables, position ids) stay real."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        original(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def _checkpoint_names(model: Any, checkpoint: Tensors) -> dict[str, str | None]:
    """The checkpoint's name of each parameter: the same, or with the base model's prefix off or on; None for a new
    head."""
    prefix = f"{model.base_model_prefix}."
    found: dict[str, str | None] = {}
    for name, _ in model.named_parameters():
        candidates = (name, name.removeprefix(prefix), prefix + name)
        found[name] = next((c for c in candidates if c in checkpoint.tensors), None)
        if found[name] is None and name.startswith(prefix) and not name.startswith(f"{prefix}pooler."):
            raise ModelError(
                f"the checkpoint has no weights for {name!r}",
                place=str(checkpoint.folder),
                remedy="use a complete checkpoint",
            )
    return found


def _replace(model: nn.Module, name: str, new: nn.Module | nn.Parameter) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
