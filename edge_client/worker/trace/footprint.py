# SPDX-License-Identifier: Apache-2.0
"""From a model folder (or its `config.json` alone) and a round's shape to a `Footprint`, with no weight in memory."""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from edge_client.memory.planner import halvings
from edge_client.worker.methods import client_half
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.embedding import FrozenEmbedding
from edge_client.worker.model.fused import fuse
from edge_client.worker.model.loading import LARGE_ELEMENTS, build
from edge_client.worker.trace.answers import sketch_answers
from edge_client.worker.trace.outline import Outline, untouched
from edge_client.worker.trace.points import Traces, Tracing
from edge_client.worker.trace.shapes import fake_model
from edge_client.worker.trace.trace import Step
from edge_client.worker.train.channel import receive, unfilled
from edge_client.worker.train.highwater import give_back_freed_memory, status_bytes
from edge_client.worker.train.trainer import can_checkpoint, set_checkpointing, set_recompute_gates
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import Footprint
from fedcore.fields.types import BaseKind
from fedcore.model.base import LayerWeight
from fedcore.round.training import AnyTraining, Training
from fedcore.weights.schema import LayerSpec, ModelSchema

__all__ = [
    "TINY_BATCHES",
    "TINY_LENGTH",
    "Shape",
    "bytes_of",
    "cached_footprint",
    "footprint",
    "outside",
]

# What calibration measures.
TINY_LENGTH = 32
TINY_BATCHES = (1, 2)
# What oneDNN writes and keeps for the 16-bit products of one layer shape (`products16`); 13 to 26 MB were measured for
# three.
_KERNELS_BYTES = 5_000_000


class Shape:
    """A base that has only shapes: what `build` needs of one.

    Args:
        outline: Names and shapes.
        schema: Target layers.
        kind: How they are held.
    """

    def __init__(self, outline: Outline, schema: ModelSchema, kind: BaseKind) -> None:
        self.checkpoint, self.schema, self.kind = outline, schema, kind

    def layer(self, layer: LayerSpec, *, mapped: bool = False) -> LayerWeight:
        """Zeros that take no memory until they are written."""
        if self.kind == "int8":
            return untouched((layer.rows, layer.columns), "i1"), untouched((layer.rows,), "<f4")
        return untouched((layer.rows, layer.columns), "<f4" if self.kind == "float32" else "<u2"), None

    def frozen(self, layer: LayerSpec) -> LayerWeight:
        """The same."""
        return self.layer(layer)


def footprint(
    folder: Path,
    schema: ModelSchema,
    task: TaskSection,
    kind: BaseKind,
    training: AnyTraining,
    *,
    longest: int,
    min_length: int = 0,
    compute_dtype: str = "float32",
    answers: tuple[int, int] | None = None,
    tracing: Tracing | None = None,
) -> Footprint:
    """Trace a method's training step on shapes.

    Args:
        folder: Model folder; `config.json` is enough.
        schema: Target layers and whole tensors.
        task: Decides head and loss.
        kind: How target layers are held.
        training: The method and the round's shape; the batch of a step is the largest micro-batch.
        longest: Tokens of the longest example.
        min_length: Shortest length that the job lets a node cut to; 0 for none.
        compute_dtype: Of the products.
        answers: Tokens of the longest prompt and of an answer, where published states are measured by answers.
        tracing: How it is traced; whether it is shared with other traces.
    """
    tracing = tracing or Tracing()
    shapes = tracing.shapes
    dtype: torch.dtype = getattr(torch, compute_dtype)
    model = build(Shape(tracing.outline or Outline(folder, task), schema, kind), task, 0, torch.device("cpu"), dtype)
    fuse(model.module)
    layers = list(model.layers.values())
    mappable = _mappable(model)
    others = bytes_of(outside(model))
    widest = max(layer.in_features for layer in layers)
    kernels = 0 if dtype == torch.float32 else _KERNELS_BYTES * len({layer.base.shape for layer in layers})
    trained = sum(math.prod(spec.shape) for spec in schema.tensors)
    away = training.untouched(schema)
    weights = [bytes_of(list(layer.base.buffers())) for layer in layers if layer.name not in away]
    fake_model(model, shapes)
    with shapes.at_work():
        kept = client_half(model, training).outline(training)
    if training.channel is not None:
        receive(model, 1.0, unfilled, training.before_channel)
    lengths = _lengths(longest, min_length)
    tiny = 0 if TINY_LENGTH in lengths else TINY_LENGTH
    step = Step(task, batch_size=training.batch_size, after_bytes=kept.after_bytes, tiny_length=tiny)
    traces = Traces(model, shapes, step, whole=tracing.whole)
    shapes_traced = _shapes(training.batch_size, lengths)
    points = traces.points(shapes_traced, _recompute, tracing.progress, when_asked=tracing.when_asked)
    answering = None if answers is None else sketch_answers(model, shapes, *answers)
    del model, layers
    gc.collect()
    give_back_freed_memory()
    return Footprint(
        longest=longest,
        # Now, when everything that training imports is imported.
        runtime_bytes=(status_bytes("VmRSS") or 0) + kernels,
        weights_bytes=sum(weights),
        largest_layer_bytes=max(weights),
        embeddings_bytes=others,
        mappable_embeddings_bytes=mappable,
        subspaces_bytes=kept.state_bytes,
        rank_bytes=kept.rank_bytes,
        trained_bytes=kept.trained_bytes,
        moments_bytes=kept.moments_bytes,
        tensors_bytes=4 * 4 * trained,
        row_bytes=kept.block_bytes * widest + kept.side_bytes,
        signs_bytes=kept.signs_bytes,
        dequantised_bytes=kept.dequantised_bytes,
        points=points,
        answering=answering,
    )


def cached_footprint(
    cache: Path,
    folder: Path,
    schema: ModelSchema,
    task: TaskSection,
    kind: BaseKind,
    training: AnyTraining,
    *,
    compute_dtype: str,
    longest: int,
    min_length: int,
    answers: tuple[int, int] | None = None,
) -> Footprint:
    """`footprint`, remembered in the folder `cache` by model, round's shape and library versions."""
    import transformers

    config = (folder / "config.json").read_bytes()
    what = (
        version("fedkrso"),
        config,
        schema,
        task.kind,
        task.labels,
        task.pack,
        kind,
        _shape_of(training),
        longest,
        min_length,
        compute_dtype,
        answers,
        str(torch.__version__),
        transformers.__version__,
    )
    key = hashlib.sha256(msgspec.msgpack.encode(what)).hexdigest()[:16]
    path = cache / f"footprint-{key}.json"
    try:
        known = msgspec.json.decode(path.read_bytes(), type=Footprint)
        return msgspec.structs.replace(known, runtime_bytes=max(known.runtime_bytes, status_bytes("VmRSS") or 0))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        found = msgspec.structs.replace(
            footprint(
                folder,
                schema,
                task,
                kind,
                training,
                longest=longest,
                min_length=min_length,
                compute_dtype=compute_dtype,
                answers=answers,
            ),
            key=key,
        )
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob("footprint-*.json"):
        old.unlink()
    path.write_bytes(msgspec.json.encode(found))
    return found


# What changes from round to round, or between runs, and memory does not depend on.
_FREE = ("generation", "run_seed", "learning_rate", "tensor_learning_rate", "share", "trained", "turn", "server_rate")


def _shape_of(training: Training) -> tuple[object, ...]:
    """What of a training decides its memory."""
    left_out = (*_FREE, "seeds", "then", "channel")
    said = {key: value for key, value in msgspec.to_builtins(training).items() if key not in left_out}
    then = () if training.learns is training else _shape_of(training.learns)
    over = training.channel is not None
    return len(training.seeds), sorted((key, str(value)) for key, value in said.items()), over, then


def _recompute(model: nn.Module, checkpointing: bool, gates: bool) -> bool:
    if checkpointing and not can_checkpoint(model):
        # No plan may ask for it.
        return False
    set_checkpointing(model, checkpointing)
    return set_recompute_gates(model, gates) or not gates


def _lengths(longest: int, min_length: int) -> set[int]:
    """The longest length, and halves of it down to what the job allows."""
    lengths, length = {longest}, longest
    while min_length and length > min_length:
        length = max(min_length, -(-length // 2))
        lengths.add(length)
    return lengths


def _shapes(batch_size: int, lengths: set[int]) -> list[tuple[int, int]]:
    """Every micro-batch that a plan may choose; and tiny steps."""
    chosen = {(size, length) for size in halvings(batch_size, 1) for length in lengths}
    return sorted(chosen | {(size, min(max(lengths), TINY_LENGTH)) for size in TINY_BATCHES})


def outside(model: BuiltModel) -> list[Tensor]:
    """Tensors of a model that are of no target layer."""
    own = {id(tensor) for layer in model.layers.values() for tensor in (*layer.buffers(), layer.factor)}
    return [tensor for tensor in model.held() if id(tensor) not in own]


def _mappable(model: BuiltModel) -> int:
    """Bytes of frozen embeddings that need not be in memory whole."""
    tables: list[Tensor] = [module.weight for module in model.module.modules() if isinstance(module, FrozenEmbedding)]
    if model.output_weight is not None and model.output_weight.weight.numel() >= LARGE_ELEMENTS:
        tables.append(model.output_weight.weight)
    return bytes_of(tables)


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Of tensors together, shared storages once."""
    found = {t.data_ptr(): t for t in tensors}
    return sum(t.numel() * t.element_size() for t in found.values())
