# SPDX-License-Identifier: Apache-2.0
"""What a run learned as an adapter that PEFT loads on the original checkpoint.

A method that trains an adapter of PEFT's has its tensors; others have a LoRA adapter. A state S P is a pair of factors
already: `lora_B` is S (m, K r), `lora_A` is P (K r, n), and with alpha equal to the rank nothing is scaled. So the
adapter is what was learned, to the last bit of float32, and no approximation of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.reports.card import CARD_FILE, card_of
from coordinator.reports.export import write_head
from coordinator.reports.lastmodel import LastModel, Which, last_model, require_empty
from coordinator.store.folder import RunFolder
from fedcore.config.adapters import IA3, AnyAdapter, LayerAdapter, VeRA
from fedcore.config.tasks import task_of
from fedcore.errors import ConfigError
from fedcore.model.learned import layer_factors
from fedcore.weights.checkpoint import to_float32, write_safetensors
from fedcore.weights.initial import initial_adapter, row_lengths, start_value
from fedcore.weights.schema import AdapterTensor, LayerSpec, TensorSpec

__all__ = ["export_adapter", "write_adapter"]

_PREFIX: Final = "base_model.model."


def export_adapter(files: RunFolder, folder: Path, *, overwrite: bool = False, which: Which = "last") -> str:
    """Write a run's last model as a PEFT adapter: `adapter_config.json` and `adapter_model.safetensors`.

    Tensors trained whole (the task head) lie in it whole, as PEFT's `modules_to_save`. PEFT has no model whose head
    looks at pooled states: such a head lies beside, as with a whole model (`fedcore.weights.sentences`), and the
    adapter is the backbone's.

    Args:
        files: The run's.
        folder: A new or an empty one.
        overwrite: Also one that holds something.
        which: `last`, `best` or a round's number; the last two are always there, and the best.

    Returns:
        What it is, in words.

    Raises:
        ConfigError: The folder holds something already, or what the method learns is no pair of factors.
        RunError: No round is finished yet.
    """
    require_empty(folder, overwrite=overwrite)
    last = last_model(files, which)
    said = write_adapter(last, folder)
    (folder / CARD_FILE).write_text(card_of(files, last, adapter=True), encoding="utf-8")
    return f"{said} for {last.schema.architecture}, round {last.round}"


def write_adapter(last: LastModel, folder: Path) -> str:
    """The two files of the adapter; what it is, in words.

    Raises:
        ConfigError: What the method learns is no pair of factors and no adapter, or PEFT has no place for it.
    """
    adapter = last.training.learns.adapter
    if adapter is None:
        tensors = {**_factors(last), **_whole(last)}
        rank = max(array.shape[0] for name, array in tensors.items() if name.endswith("lora_A.weight"))
        config, said = _lora_config(last, rank), f"LoRA adapter of rank {rank}"
    else:
        tensors, config = _own_tensors(last, adapter), _own_config(last, adapter)
        said = f"{adapter.name} adapter"
    folder.mkdir(parents=True, exist_ok=True)
    table = [(name, "F32", array.shape) for name, array in tensors.items()]
    write_safetensors(folder / "adapter_model.safetensors", table, tensors.__getitem__)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if (pooled := last.task.pooled) is not None:
        write_head(folder, pooled, last.schema, last.task, last.state, last.training)
    return said


def _factors(last: LastModel) -> dict[str, NDArray[np.float32]]:
    _require_one_layer_each(last)
    out: dict[str, NDArray[np.float32]] = {}
    for layer in last.schema.layers:
        up, down = layer_factors(last.training, last.state, layer, last.artefact)
        name = _PREFIX + _module_name(last, layer.name)
        out |= {f"{name}.lora_A.weight": np.ascontiguousarray(down), f"{name}.lora_B.weight": np.ascontiguousarray(up)}
    return out


def _whole(last: LastModel) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the modules of which one is trained whole; those that did not train are the checkpoint's."""
    trained = {spec.name: spec for spec in _beside(last)}
    checkpoint, out = last.base.checkpoint, {}
    modules = {name.rpartition(".")[0] for name in trained}
    beside = {name for name in checkpoint.tensors if name.rpartition(".")[0] in modules}
    for name in sorted({*trained, *beside}):
        spec = trained.get(name)
        if spec is None:
            value = to_float32(checkpoint.read(name), checkpoint.tensors[name].dtype)
        else:
            start = start_value(checkpoint, spec, last.training.run_seed)
            value = np.add(start, last.state.entries[name].values().reshape(spec.shape), dtype=np.float32)
        out[_PREFIX + _module_name(last, name)] = value
    return out


def _beside(last: LastModel) -> list[TensorSpec]:
    """Tensors trained whole that PEFT is to hold: all but a head on pooled states."""
    return [spec for spec in last.schema.tensors if spec.in_checkpoint or last.task.pooled is None]


def _module_name(last: LastModel, name: str) -> str:
    """A checkpoint's name as the model has it that PEFT wraps: the task model's, or the backbone's below a pooled
    head."""
    if last.task.pooled is not None:
        return name.removeprefix(_before_backbone(last))
    prefix = last.schema.export_prefix
    new = any(spec.name == name and not spec.in_checkpoint for spec in last.schema.tensors)
    return name if new or name.startswith(prefix) else prefix + name


def _before_backbone(last: LastModel) -> str:
    """What a checkpoint puts before the names of its backbone's tensors: nothing where the backbone was saved alone,
    else what its layers and its word embeddings have in common."""
    checkpoint = last.base.checkpoint
    if last.schema.architecture in (checkpoint.config.get("architectures") or ()):
        return ""
    (first, *others) = {layer.name.partition(".")[0] for layer in last.schema.layers}
    words = checkpoint.config.get("vocab_size")
    embedded = any(
        entry.shape[:1] == (words,) and name.startswith(f"{first}.") for name, entry in checkpoint.tensors.items()
    )
    return f"{first}." if embedded and not others else ""


def _common_config(last: LastModel) -> dict[str, Any]:
    kind = "CAUSAL_LM" if task_of(last.task).outputs() is None else "SEQ_CLS"
    return {
        "task_type": kind if last.task.pooled is None else "FEATURE_EXTRACTION",
        "base_model_name_or_path": str(last.base.checkpoint.folder),
        "inference_mode": True,
    }


def _layers_config(last: LastModel, layers: Sequence[LayerSpec]) -> dict[str, Any]:
    whole = sorted({_module_name(last, spec.name).rpartition(".")[0] for spec in _beside(last)})
    return {
        # Of Conv1D maps, which keep their weight the other way round.
        "fan_in_fan_out": any(layer.transposed for layer in layers),
        "target_modules": [_module_name(last, layer.name) for layer in layers],
        "modules_to_save": whole or None,
    }


def _lora_config(last: LastModel, rank: int) -> Mapping[str, Any]:
    own = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none"}
    return {**_common_config(last), **own, **_layers_config(last, last.schema.layers)}


def _own_config(last: LastModel, adapter: AnyAdapter) -> Mapping[str, Any]:
    common = {"peft_type": adapter.peft_type, **_common_config(last), **adapter.settings}
    if not isinstance(adapter, LayerAdapter):
        return common
    layers = [layer for layer in last.schema.layers if adapter.takes(layer.name)]
    where = _layers_config(last, layers)
    if isinstance(adapter, IA3):
        inputs = [layer for layer in layers if adapter.scales_input(layer.name)]
        where["feedforward_modules"] = [_module_name(last, layer.name) for layer in inputs]
    if isinstance(adapter, VeRA):
        where["save_projection"] = True
    return common | where


def _own_tensors(last: LastModel, adapter: AnyAdapter) -> dict[str, NDArray[np.float32]]:
    """As PEFT names them."""
    _require_one_layer_each(last)
    values = {spec.name: _value(last, spec) for spec in last.schema.adapter}
    if not isinstance(adapter, LayerAdapter):
        if last.schema.tensors:
            raise ConfigError(
                "PEFT has no place for tensors trained whole beside virtual tokens",
                place="method.peft",
                remedy="its numbers are in the published states",
            )
        return {"prompt_embeddings": _vectors(values)}
    out = {}
    for name, value in values.items():
        layer, _, own = name.rpartition("/")
        # DoRA's lengths are saved without the name of the module that holds them.
        own = own.removesuffix(".weight") if own.startswith("lora_magnitude_vector") else own
        out[f"{_PREFIX}{_module_name(last, layer)}.{own}" if layer else f"base_model.{own}"] = value
    return {**out, **_whole(last)}


def _value(last: LastModel, spec: AdapterTensor) -> NDArray[np.float32]:
    """What a tensor of an adapter holds: as it began, plus what was learned."""
    if spec.lengths_of:
        layer = next(layer for layer in last.schema.layers if layer.name == spec.lengths_of)
        start = row_lengths(last.base.values(layer))
    else:
        start = initial_adapter(spec, last.training.run_seed)
    if not spec.trained:
        return start
    change = last.state.entries[spec.name].values().reshape(spec.shape)
    return np.add(start, change, dtype=np.float32)


def _vectors(values: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Virtual tokens as they stand before a text; P-tuning's are what its network makes of them."""
    vectors = values["/embedding.weight"]
    layers = sorted({name.rpartition(".")[0] for name in values if name.startswith("/mlp_head.")})
    for place, name in enumerate(layers):
        vectors = vectors @ values[f"{name}.weight"].T + values[f"{name}.bias"]
        vectors = np.maximum(vectors, 0) if place + 1 < len(layers) else vectors
    return np.ascontiguousarray(vectors, np.float32)


def _require_one_layer_each(last: LastModel) -> None:
    """Experts of a mixture lie together in one tensor.

    Raises:
        ConfigError: The model has some.
    """
    for layer in last.schema.layers:
        if layer.expert is not None:
            raise ConfigError(
                f"PEFT has no adapter for one of several experts in a tensor: {layer.name}",
                place=last.schema.architecture,
                remedy="export the whole model instead",
            )
