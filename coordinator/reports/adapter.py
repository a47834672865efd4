# SPDX-License-Identifier: Apache-2.0
"""What a run learned as a LoRA adapter that PEFT loads on the original checkpoint.

A state S P is a pair of factors already: `lora_B` is S (m, K r), `lora_A` is P (K r, n), and with alpha equal to the
rank nothing is scaled. So the adapter is what was learned, to the last bit of float32, and no approximation of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.reports.card import CARD_FILE, card_of
from coordinator.reports.lastmodel import LastModel, Which, last_model, require_empty
from coordinator.store.folder import RunFolder
from fedcore.config.tasks import task_of
from fedcore.errors import ConfigError
from fedcore.model.learned import layer_factors
from fedcore.weights.checkpoint import to_float32, write_safetensors
from fedcore.weights.initial import start_value

__all__ = ["export_adapter"]

_PREFIX: Final = "base_model.model."


def export_adapter(files: RunFolder, folder: Path, *, overwrite: bool = False, which: Which = "last") -> str:
    """Write a run's last model as a PEFT adapter: `adapter_config.json` and `adapter_model.safetensors`.

    Tensors trained whole (the task head) lie in it whole, as PEFT's `modules_to_save`.

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
    if last.task.pooled is not None:
        raise ConfigError(
            f"PEFT has no model whose head looks at {last.task.pooling!r} of a text",
            place="task.pooling",
            remedy='export the whole model, or run with task.pooling = "model"',
        )
    tensors = {**_factors(last), **_whole(last)}
    rank = max(array.shape[0] for name, array in tensors.items() if name.endswith("lora_A.weight"))
    folder.mkdir(parents=True, exist_ok=True)
    table = [(name, "F32", array.shape) for name, array in tensors.items()]
    write_safetensors(folder / "adapter_model.safetensors", table, tensors.__getitem__)
    (folder / "adapter_config.json").write_text(json.dumps(_config(last, rank), indent=1) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(card_of(files, last, adapter=True), encoding="utf-8")
    return f"LoRA adapter of rank {rank} for {last.schema.architecture}, round {last.round}"


def _factors(last: LastModel) -> dict[str, NDArray[np.float32]]:
    out: dict[str, NDArray[np.float32]] = {}
    for layer in last.schema.layers:
        if layer.expert is not None:
            raise ConfigError(
                f"PEFT has no adapter for one of several experts in a tensor: {layer.name}",
                place=last.schema.architecture,
                remedy="export the whole model instead",
            )
        up, down = layer_factors(last.training, last.state, layer, last.artefact)
        name = _PREFIX + _module_name(last, layer.name)
        out |= {f"{name}.lora_A.weight": np.ascontiguousarray(down), f"{name}.lora_B.weight": np.ascontiguousarray(up)}
    return out


def _whole(last: LastModel) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the modules of which one is trained whole; those that did not train are the checkpoint's."""
    trained = {spec.name: spec for spec in last.schema.tensors}
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


def _module_name(last: LastModel, name: str) -> str:
    """A checkpoint's name as the task model has it."""
    prefix = last.schema.export_prefix
    new = any(spec.name == name and not spec.in_checkpoint for spec in last.schema.tensors)
    return name if new or name.startswith(prefix) else prefix + name


def _config(last: LastModel, rank: int) -> Mapping[str, Any]:
    whole = sorted({_module_name(last, spec.name).rpartition(".")[0] for spec in last.schema.tensors})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if task_of(last.task).outputs() is None else "SEQ_CLS",
        "base_model_name_or_path": str(last.base.checkpoint.folder),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        # Of Conv1D maps, which keep their weight the other way round.
        "fan_in_fan_out": any(layer.transposed for layer in last.schema.layers),
        "target_modules": [_module_name(last, layer.name) for layer in last.schema.layers],
        "modules_to_save": whole or None,
    }
