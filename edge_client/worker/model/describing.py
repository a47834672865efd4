# SPDX-License-Identifier: Apache-2.0
"""What of a model folder is trained for a task: layers in subspaces, and small tensors whole."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from torch import nn

from edge_client.worker.architecture.configuration import empty_model, read_config
from edge_client.worker.architecture.names import Stored, same_numbers, stored_tensors
from edge_client.worker.architecture.padding_token import padding_token
from edge_client.worker.architecture.pooled import PooledClassifier
from edge_client.worker.architecture.tuned_head import Head, head_of, labels_of
from edge_client.worker.model.head import shaping_of
from edge_client.worker.model.targets import targets_of
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import ModelError
from fedcore.weights.checkpoint import Tensors
from fedcore.weights.offsite import read_map
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec, is_target

__all__ = ["describe", "opened", "said_of_head"]

_ALL_ELSE: Final = "*"


def describe(checkpoint: Tensors, task: TaskSection, trained_tensors: tuple[str, ...] = ()) -> ModelSchema:
    """Which layers and tensors of a model are trained for a task.

    Args:
        checkpoint: The model's tensors, or the outline of them.
        task: Decides the head.
        trained_tensors: Patterns of checkpoint tensors trained whole beside the head; `*` is all that is no target
            layer.

    Raises:
        ModelError: The folder cannot serve, or a pattern matches nothing.
    """
    folder = checkpoint.folder
    pad = _pad_token_id(checkpoint, task)
    model, names = opened(checkpoint, task, pad_token_id=pad)
    if task_of(task).outputs() is None:
        shaping_of(model)
    head = head_of(checkpoint, model, names, task)
    emulator = read_map(folder)

    def trains(stored: Stored) -> bool:
        return emulator is None or emulator.trains(stored.name)

    layers: dict[str, list[LayerSpec]] = {}
    for target in targets_of(model, names, checkpoint):
        specs = [spec for parts in target.layers for spec in parts]
        if all(is_target(f"{spec.name}.weight", (spec.rows, spec.columns)) for spec in specs):
            layers[target.parameter] = specs
    trained: list[LayerSpec] = []
    tensors: list[TensorSpec] = []
    for name, parameter in model.named_parameters():
        stored, shape = names[name], tuple(parameter.shape)
        if not _is_of_backbone(model, name) and task_of(task).outputs() is not None:
            tensors.append(_of_head(model, name, stored, shape, task, head))
        elif stored is None:
            tensors.append(TensorSpec(name, shape, in_checkpoint=False, start=_start(model, name, shape, task)))
        elif not trains(stored):
            continue
        elif stored.single and any(
            fnmatch.fnmatch(stored.name, pattern)
            for pattern in trained_tensors
            if pattern != _ALL_ELSE or name not in layers
        ):
            tensors.append(TensorSpec(stored.name, shape, in_checkpoint=True))
        elif name in layers:
            trained += layers[name]
    if not trained:
        raise ModelError(
            f"no linear layer to train was found in {type(model).__name__}",
            place=str(folder),
            remedy="use a model made of nn.Linear blocks",
        )
    _require_most(model, layers, folder)
    # What is exported: a head on pooled states has a file of its own, and what is left is a backbone.
    whole = model.backbone if isinstance(model, PooledClassifier) else model
    for pattern in trained_tensors:
        if not any(fnmatch.fnmatch(tensor.name, pattern) for tensor in tensors):
            left_out = whole is not model and any(fnmatch.fnmatch(name, pattern) for name in checkpoint.tensors)
            raise ModelError(
                f"no tensor {'that the head looks through' if left_out else ''} matches {pattern!r}".replace("  ", " "),
                place="model.trained_tensors",
                remedy='leave it out, or set task.pooling to "model"' if left_out else "",
            )
    prefix = f"{model.base_model_prefix}."
    wrapped = whole is model and any(
        stored is not None and name.startswith(prefix) and not stored.name.startswith(prefix)
        for name, stored in names.items()
    )
    return ModelSchema(
        tuple(trained),
        tuple(tensors),
        type(whole).__name__,
        prefix if wrapped else "",
        msgspec.UNSET if pad is None else pad,
    )


def _require_most(model: Any, layers: Mapping[str, object], folder: Path) -> None:
    """Most of what blocks multiply with can train: half a model that is silently left out is no training of it.

    Raises:
        ModelError: The kind of layer that holds most of the rest.
    """
    rest: Counter[str] = Counter()
    trained = 0
    for name, parameter in model.named_parameters():
        place = name.rpartition(".")[0]
        if (
            parameter.ndim < 2
            or isinstance(model.get_submodule(place), nn.Embedding)
            or not re.search(r"\.\d+\.", name)
        ):
            continue
        if name in layers:
            trained += parameter.numel()
        else:
            rest[type(model.get_submodule(place)).__name__] += parameter.numel()
    if rest.total() > trained:
        kind = rest.most_common(1)[0][0]
        raise ModelError(
            f"{type(model).__name__} is made of {kind} layers, which do not train here",
            place=str(folder),
            remedy="use a model made of nn.Linear blocks",
        )


def said_of_head(checkpoint: Tensors, task: TaskSection, schema: ModelSchema) -> str:
    """What becomes of a head that the folder has already, in words; nothing where it has none."""
    replaced = [spec.name for spec in schema.tensors if not spec.in_checkpoint and spec.name in checkpoint.tensors]
    kept = [spec.name for spec in schema.tensors if spec.in_checkpoint]
    if replaced:
        theirs = ", ".join(labels_of(checkpoint.folder)) or "labels without names"
        return f"the folder's head ({theirs}) is replaced by a new one: its labels are not the job's"
    if kept and task_of(task).outputs() is not None and len(kept) == len(schema.tensors):
        return "the folder's own head is trained on from what it is"
    return ""


def opened(
    checkpoint: Tensors, task: TaskSection, *, pad_token_id: int | None = None
) -> tuple[Any, dict[str, Stored | None]]:
    """A task's architecture without weights, and where its parameters' numbers lie in a checkpoint.

    Embeddings that the configuration ties, and of which the checkpoint has two that differ, are two, as in
    transformers.

    Args:
        checkpoint: The model's tensors, or the outline of them.
        task: Decides the head.
        pad_token_id: Used where the configuration names none.

    Raises:
        ModelError: The folder cannot serve, or lacks numbers that are not a new head's.
    """
    model = empty_model(checkpoint.folder, task, pad_token_id=pad_token_id)
    if not hasattr(model, model.base_model_prefix):
        raise ModelError(f"{type(model).__name__} has no backbone of its own", place=str(checkpoint.folder))
    names = stored_tensors(model, checkpoint)
    if _is_tied_in_words_only(model, checkpoint):
        model = empty_model(checkpoint.folder, task, pad_token_id=pad_token_id, tied=False)
        names = stored_tensors(model, checkpoint)
    _require_whole(model, names, checkpoint, new_head=task_of(task).outputs() is not None)
    return model, names


def _is_tied_in_words_only(model: Any, checkpoint: Tensors) -> bool:
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    if not tied:
        return False
    untied = stored_tensors(model, checkpoint, tied=False)
    for target, source in tied.items():
        one, other = untied.get(target), untied.get(source)
        both = one is not None and other is not None and one.single and other.single
        if both and one is not None and other is not None and not same_numbers(checkpoint, one.name, other.name):
            return True
    return False


def _require_whole(model: Any, names: Mapping[str, Stored | None], checkpoint: Tensors, *, new_head: bool) -> None:
    """Numbers are there for all but a new head, and have the parameters' shapes."""
    place = str(checkpoint.folder)
    for name, parameter in model.named_parameters():
        stored = names[name]
        if stored is None:
            if new_head and (not _is_of_backbone(model, name) or ".pooler." in f".{name}"):
                continue
            raise ModelError(
                f"the checkpoint has no weights for {name!r}", place=place, remedy="use a complete checkpoint"
            )
        if stored.conversion:
            raise ModelError(
                f"{stored.name!r} becomes {name!r} by {stored.conversion}, which is not understood", place=place
            )
        if new_head and not _is_of_backbone(model, name):
            # Another number of labels: a new head, or refused where its labels are compared.
            continue
        shape = checkpoint.tensors[stored.name].shape
        if stored.single and shape != tuple(parameter.shape):
            raise ModelError(
                f"the configuration makes {name!r} {_by(parameter.shape)}, the checkpoint has {_by(shape)}",
                place=place,
                remedy="use the config.json that came with the weights",
            )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _is_of_backbone(model: Any, name: str) -> bool:
    return name.startswith(f"{model.base_model_prefix}.")


def _of_head(
    model: Any, name: str, stored: Stored | None, shape: tuple[int, ...], task: TaskSection, head: Head
) -> TensorSpec:
    """A tensor of a task's head: trained on from what the checkpoint has, or begun anew."""
    if stored is not None and stored.single and head.keeps(name, shape):
        return TensorSpec(stored.name, shape, in_checkpoint=True)
    return TensorSpec(name, shape, in_checkpoint=False, start=_start(model, name, shape, task))


def _start(model: nn.Module, name: str, shape: tuple[int, ...], task: TaskSection) -> float:
    """What a new tensor of one dimension holds first: a norm's weight one, an output's bias the middle of a scale."""
    module, _, last = name.rpartition(".")
    if last == "weight" and len(shape) == 1 and "norm" in type(model.get_submodule(module)).__name__.lower():
        return 1.0
    # A regression has one output; a head's inner layers have biases too.
    return task.middle if shape == (1,) else 0.0


def _pad_token_id(checkpoint: Tensors, task: TaskSection) -> int | None:
    """A token to pad with, where the configuration names none and a head looks for the last token of a text."""
    config = read_config(checkpoint.folder, task)
    if task_of(task).outputs() is None or config.pad_token_id is not None:
        return None
    return padding_token(checkpoint.folder, config)
