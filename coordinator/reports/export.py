# SPDX-License-Identifier: Apache-2.0
"""The final model as a Hugging Face folder that `from_pretrained` loads: base master plus learned state, in floating
point."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.reports.card import CARD_FILE, card_of
from coordinator.reports.lastmodel import Which, last_model, require_empty
from coordinator.store.folder import RunFolder
from fedcore.config.models import SOURCE_FILE
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.fields.types import Pooled
from fedcore.model.base import Base
from fedcore.model.learned import layer_update, require_shared_model
from fedcore.model.merge import merged
from fedcore.model.state import PublishedState
from fedcore.round.training import Training
from fedcore.weights.checkpoint import Checkpoint, from_float32, write_safetensors
from fedcore.weights.initial import initial_tensor, start_value
from fedcore.weights.offsite import OFFSITE_FILE
from fedcore.weights.schema import LayerSpec, ModelSchema
from fedcore.weights.sentences import FILES, HEAD_FILE, HEAD_NAMES, write_sentence_model

__all__ = ["export_model", "export_run", "write_head"]

# What an import says goes into the card; what was tuned is no emulator any more; and what a sentence model says of its
# vectors is not true of a classifier.
_NOT_COPIED = (SOURCE_FILE, OFFSITE_FILE, *FILES)
# Heads of transformers' classifiers: one that was tuned before would be taken for the one that is.
_HEADS = ("classifier.", "score.", "pre_classifier.", "classification_head.", "logits_proj.", "sequence_summary.")


def export_run(files: RunFolder, folder: Path, *, overwrite: bool = False, which: Which = "last") -> str:
    """Write a run's last model to a folder; what it is, in words.

    Args:
        files: The run's.
        folder: A new or an empty one.
        overwrite: Also one that holds something.
        which: `last`, `best` or a round's number; the last two are always there, and the best.

    Raises:
        ConfigError: The folder holds something already.
        RunError: No round is finished yet, or the base is damaged.
    """
    require_empty(folder, overwrite=overwrite)
    last = last_model(files, which)
    export_model(last.base, last.state, last.schema, last.task, last.training, folder, last.artefact)
    (folder / CARD_FILE).write_text(card_of(files, last), encoding="utf-8")
    return f"{last.schema.architecture} of round {last.round}"


def export_model(
    base: Base,
    state: PublishedState,
    schema: ModelSchema,
    task: TaskSection,
    training: Training,
    folder: Path,
    artefact: Any = None,
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
        # The card is the run's own, and what the base was imported from says the card.
        left = file.name.endswith((".safetensors", ".bin", ".index.json", ".md")) or file.name in _NOT_COPIED
        if file.is_file() and not left:
            shutil.copyfile(file, folder / file.name)
    _write_config(checkpoint, schema, task, folder)
    layers: dict[str, list[LayerSpec]] = {}
    for layer in schema.layers:
        layers.setdefault(layer.stored, []).append(layer)
    tensors = {tensor.name: tensor for tensor in schema.tensors}
    new = [tensor.name for tensor in schema.tensors if not tensor.in_checkpoint]
    pooled = task.pooled
    prefix = schema.export_prefix
    sources: dict[str, str] = {}
    table: list[tuple[str, str, tuple[int, ...]]] = []
    kept = (name for name, _ in base.others() if name not in new and not (pooled and name.startswith(_HEADS)))
    for name in [*layers, *kept, *(() if pooled else new)]:
        entry = None if name in new else checkpoint.tensors.get(name)
        target = name if entry is None or name.startswith(prefix) else prefix + name
        dtype = "F32" if entry is None or entry.dtype == "I8" else entry.dtype
        shape = tensors[name].shape if entry is None else entry.shape
        sources[target] = name
        table.append((target, dtype, shape))
    types = {target: dtype for target, dtype, _ in table}

    def read(target: str) -> NDArray[Any]:
        name = sources[target]
        if name in layers:
            tuned = [
                from_float32(merged(base.master(one), layer_update(training, state, one, artefact)), types[target])
                for one in layers[name]
            ]
            return _as_stored(layers[name], tuned)
        if name not in tensors:
            return checkpoint.read(name)
        spec = tensors[name]
        start = start_value(checkpoint, spec, training.run_seed)
        learned = state.entries[name].values().reshape(spec.shape)
        return from_float32(np.add(start, learned, dtype=np.float32), types[target])

    write_safetensors(folder / "model.safetensors", table, read)
    if pooled is not None:
        write_head(folder, pooled, schema, task, state, training)


def write_head(
    folder: Path, pooled: Pooled, schema: ModelSchema, task: TaskSection, state: PublishedState, training: Training
) -> None:
    """Beside a backbone or its adapter, a head on pooled states: no class of transformers would look at the same
    vector, so it lies where none takes it for its own."""
    tensors = [spec for spec in schema.tensors if not spec.in_checkpoint]
    outputs, features = next(spec.shape for spec in tensors if len(spec.shape) == 2)
    write_sentence_model(folder, pooled, features, outputs, max_length=task.max_length)
    values = {}
    for spec in tensors:
        start = initial_tensor(spec.name, spec.shape, training.run_seed, bias=spec.start)
        learned = state.entries[spec.name].values().reshape(spec.shape)
        values[HEAD_NAMES[spec.name]] = np.add(start, learned, dtype=np.float32)
    table = [(name, "F32", value.shape) for name, value in values.items()]
    write_safetensors(folder / HEAD_FILE, table, values.__getitem__)


def _as_stored(layers: Sequence[LayerSpec], weights: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The tensor that layers lie in, of their weights (rows, columns): one layer's, or experts in their order."""
    matrices = [weight.T if layer.transposed else weight for layer, weight in zip(layers, weights, strict=True)]
    return matrices[0] if layers[0].expert is None else np.stack(matrices)


def _write_config(checkpoint: Checkpoint, schema: ModelSchema, task: TaskSection, folder: Path) -> None:
    config = dict(checkpoint.config)
    config.pop("quantization_config", None)
    config["architectures"] = [schema.architecture]
    config |= task_of(task).head_config()
    if schema.pad_token_id is not msgspec.UNSET:
        config["pad_token_id"] = schema.pad_token_id
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
