# SPDX-License-Identifier: Apache-2.0
"""The final model as a Hugging Face folder that `from_pretrained` loads: base master plus learned state, in floating
point."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.run.prepare import prepare
from coordinator.store.folder import RunFolder, load_state, stored_job
from coordinator.store.ledger import SqliteLedger
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, RunError
from fedcore.methods import server_half
from fedcore.model.base import Base
from fedcore.model.learned import layer_update, require_shared_model
from fedcore.model.merge import merged
from fedcore.model.state import PublishedState
from fedcore.round.training import Training
from fedcore.subspaces.informed import InformedRows, read_informed
from fedcore.weights.checkpoint import Checkpoint, from_float32, write_safetensors
from fedcore.weights.initial import start_value
from fedcore.weights.schema import ModelSchema

__all__ = ["export_model", "export_run"]


def export_run(files: RunFolder, folder: Path, *, overwrite: bool = False) -> str:
    """Write a run's last model to a folder; what it is, in words.

    Args:
        files: The run's.
        folder: A new or an empty one.
        overwrite: Also one that holds something.

    Raises:
        ConfigError: The folder holds something already.
        RunError: No round is finished yet, or the base is damaged.
    """
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise ConfigError("the folder is not empty", place=str(folder), remedy="name a new one, or --overwrite")
    job = stored_job(files.root)
    ledger = SqliteLedger(files.ledger)
    try:
        rows = ledger.rounds()
        if not rows:
            raise RunError("no round is finished yet", place=str(files.root))
        last = rows[-1].round
        prepared = prepare(job, resolve_model_folder(job.model.folder, place="model.folder"), files, ledger)
        plan = ledger.plan(last)
    finally:
        ledger.close()
    base = Base(Checkpoint(prepared.model_folder), prepared.schema, job.model.base, files.base)
    state = load_state(files.state(last)).publish()
    if plan is not None and base.generation < plan.training.generation:
        remedy = f"fedkrso coordinator resume {job.run} makes it anew"
        raise RunError("the merged base is damaged", place=str(files.base), remedy=remedy)
    if plan is not None and base.generation > plan.training.generation:
        # The next round is open, and what this one learned is in the base already.
        state = state.refreshed(plan.training, prepared.schema)
    training = server_half(job.method, prepared.informed).training(last, job.seed)
    informed = None
    if training.informed:
        informed = read_informed(
            files.informed, training.informed, prepared.schema, training.informed_subspaces, training.rank
        )
    export_model(base, state, prepared.schema, prepared.job.task, training, folder, informed)
    return f"{prepared.schema.architecture} of round {last}"


def export_model(
    base: Base,
    state: PublishedState,
    schema: ModelSchema,
    task: TaskSection,
    training: Training,
    folder: Path,
    informed: InformedRows | None = None,
) -> None:
    """Write the model of a state to `folder`, tensor by tensor, in the checkpoint's float types (int8 ones become
    float32).

    The learned part is added to the checkpoint's own weights, not to rounded ones, and rounded once.

    Raises:
        ConfigError: The method has no model that all nodes share.
    """
    require_shared_model(training)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = base.checkpoint
    for file in checkpoint.folder.iterdir():
        if file.is_file() and not file.name.endswith((".safetensors", ".bin", ".index.json", ".md")):
            shutil.copyfile(file, folder / file.name)
    _write_config(checkpoint, schema, task, folder)
    layers = {f"{layer.name}.weight": layer for layer in schema.layers}
    tensors = {tensor.name: tensor for tensor in schema.tensors}
    prefix = schema.export_prefix
    sources: dict[str, str] = {}
    table: list[tuple[str, str, tuple[int, ...]]] = []
    for name in [*layers, *(n for n, _ in base.others()), *(t.name for t in schema.tensors if not t.in_checkpoint)]:
        entry = checkpoint.tensors.get(name)
        target = name if entry is None or name.startswith(prefix) else prefix + name
        dtype = "F32" if entry is None or entry.dtype == "I8" else entry.dtype
        shape = tensors[name].shape if entry is None else entry.shape
        sources[target] = name
        table.append((target, dtype, shape))
    types = {target: dtype for target, dtype, _ in table}

    def read(target: str) -> NDArray[Any]:
        name = sources[target]
        if name in layers:
            layer = layers[name]
            return from_float32(
                merged(base.master(layer), layer_update(training, state, layer, informed)), types[target]
            )
        if name not in tensors:
            return checkpoint.read(name)
        spec = tensors[name]
        start = start_value(checkpoint, spec, training.run_seed)
        learned = state.entries[name].values().reshape(spec.shape)
        return from_float32(np.add(start, learned, dtype=np.float32), types[target])

    write_safetensors(folder / "model.safetensors", table, read)


def _write_config(checkpoint: Checkpoint, schema: ModelSchema, task: TaskSection, folder: Path) -> None:
    config = dict(checkpoint.config)
    config.pop("quantization_config", None)
    config["architectures"] = [schema.architecture]
    if task.kind == "regression":
        config |= {"num_labels": 1, "problem_type": "regression", "id2label": {"0": "score"}, "label2id": {"score": 0}}
    elif task.kind != "causal-lm":
        labels = list(task.labels)
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
