# SPDX-License-Identifier: Apache-2.0
"""From a model folder (or its `config.json` alone) and a round's shape to a `Footprint`, with no weight in memory."""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from edge_client.memory.planner import halvings
from edge_client.worker.embedding import FrozenEmbedding
from edge_client.worker.fused import fuse
from edge_client.worker.highwater import give_back_freed_memory, status_bytes
from edge_client.worker.layer import SubspaceLinear
from edge_client.worker.model import LARGE_ELEMENTS, build
from edge_client.worker.outline import Outline, untouched
from edge_client.worker.sketch import Step, fake_model, sketch_points
from edge_client.worker.trainer import set_checkpointing, set_recompute_gates
from fedcore.base import LayerWeight
from fedcore.job import TaskSection
from fedcore.memoryplan import Footprint
from fedcore.schema import LayerSpec, ModelSchema
from fedcore.types import BaseKind

__all__ = ["TINY_BATCHES", "TINY_LENGTH", "Shape", "cached_footprint", "footprint", "shape_model"]

# What calibration measures.
TINY_LENGTH = 32
TINY_BATCHES = (1, 2)
# What oneDNN writes and keeps for the 16-bit products of one layer shape (`half`); 13 to 26 MB were measured for three.
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


def shape_model(
    outline: Outline,
    schema: ModelSchema,
    task: TaskSection,
    kind: BaseKind,
    *,
    pool: int,
    rank: int,
    compute_dtype: torch.dtype = torch.float32,
) -> Any:
    """The model as it trains in the middle of a run, one subspace selected, with shapes only (zeros that take no memory)."""
    model = build(Shape(outline, schema, kind), task, 0, torch.device("cpu"), compute_dtype)
    fuse(model)
    for layer in _subspace_layers(model):
        m, n = layer.out_features, layer.in_features
        layer.install(
            torch.from_numpy(untouched((pool * rank, n), "i1")),
            rank,
            state=torch.from_numpy(untouched((m, pool * rank), "<i2")),
            state_scale=torch.zeros(m),
        )
        layer.select(0)
    return model


def footprint(
    folder: Path,
    schema: ModelSchema,
    task: TaskSection,
    kind: BaseKind,
    *,
    pool: int,
    rank: int,
    intervals: int,
    batch_size: int,
    longest: int,
    min_length: int = 0,
    compute_dtype: str = "float32",
) -> Footprint:
    """Trace a model's training step on shapes.

    Args:
        folder: Model folder; `config.json` is enough.
        schema: Target layers and whole tensors.
        task: Decides head and loss.
        kind: How target layers are held.
        pool: Seeds of the pool, K.
        rank: r.
        intervals: Of a round; no more accumulators than these exist.
        batch_size: Examples in an optimiser step: the largest micro-batch.
        longest: Tokens of the longest example.
        min_length: Shortest length that the job lets a node cut to; 0 for none.
        compute_dtype: Of the products.
    """
    outline = Outline(folder, task)
    dtype: torch.dtype = getattr(torch, compute_dtype)
    model = shape_model(outline, schema, task, kind, pool=pool, rank=rank, compute_dtype=dtype)
    layers = list(_subspace_layers(model))
    mappable = _mappable(model)
    others = _bytes([p for p in _tensors(model) if not _belongs_to(layers, p)])
    rows, columns = sum(layer.out_features for layer in layers), sum(layer.in_features for layer in layers)
    widest = max(layer.in_features for layer in layers)
    kernels = 0 if dtype == torch.float32 else _KERNELS_BYTES * len({layer.base.shape for layer in layers})
    trained = sum(math.prod(spec.shape) for spec in schema.tensors)
    weights = [_bytes(list(layer.base.buffers())) for layer in layers]
    mode = fake_model(model)
    points = sketch_points(model, mode, Step(task), _shapes(batch_size, longest, min_length), _recompute)
    del model, layers, mode
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
        # Signs int8; the state int16 twice, in the layers and as published; accumulators float32.
        subspaces_bytes=pool * rank * (columns + 2 * 2 * rows) + min(pool, intervals) * rank * rows * 4,
        rank_bytes=4 * 4 * rows,
        tensors_bytes=4 * 4 * trained,
        row_bytes=dtype.itemsize * widest,
        signs_bytes=dtype.itemsize * pool * rank * widest,
        points=points,
    )


def cached_footprint(
    cache: Path, folder: Path, schema: ModelSchema, task: TaskSection, kind: BaseKind, *, compute_dtype: str, **shape: int
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
        kind,
        sorted(shape.items()),
        compute_dtype,
        str(torch.__version__),
        transformers.__version__,
    )
    key = hashlib.sha256(msgspec.msgpack.encode(what)).hexdigest()[:16]
    path = cache / f"footprint-{key}.json"
    try:
        known = msgspec.json.decode(path.read_bytes(), type=Footprint)
        return msgspec.structs.replace(known, runtime_bytes=max(known.runtime_bytes, status_bytes("VmRSS") or 0))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        found = msgspec.structs.replace(footprint(folder, schema, task, kind, compute_dtype=compute_dtype, **shape), key=key)
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob("footprint-*.json"):
        old.unlink()
    path.write_bytes(msgspec.json.encode(found))
    return found


def _recompute(model: Any, checkpointing: bool, gates: bool) -> bool:
    set_checkpointing(model, checkpointing)
    return set_recompute_gates(model, gates) or not gates


def _shapes(batch_size: int, longest: int, min_length: int) -> list[tuple[int, int]]:
    """Every micro-batch that a plan may choose, at the longest length and at halves of it down to what the job allows; and tiny steps."""
    lengths, length = {longest}, longest
    while min_length and length > min_length:
        length = max(min_length, -(-length // 2))
        lengths.add(length)
    chosen = {(size, length) for size in halvings(batch_size, 1) for length in lengths}
    return sorted(chosen | {(size, min(longest, TINY_LENGTH)) for size in TINY_BATCHES})


def _subspace_layers(model: nn.Module) -> list[SubspaceLinear]:
    return [module for module in model.modules() if isinstance(module, SubspaceLinear)]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _belongs_to(layers: Sequence[SubspaceLinear], tensor: Tensor) -> bool:
    return any(tensor is own for layer in layers for own in (*layer.buffers(), layer.factor))


def _mappable(model: Any) -> int:
    """Bytes of frozen embeddings that need not be in memory whole."""
    tables = [module.weight for module in model.modules() if isinstance(module, FrozenEmbedding)]
    if hasattr(model, "output_weight") and model.output_weight.weight.numel() >= LARGE_ELEMENTS:
        tables.append(model.output_weight.weight)
    return _bytes(tables)


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Together, shared storages once."""
    found = {t.data_ptr(): t for t in tensors}
    return sum(t.numel() * t.element_size() for t in found.values())
