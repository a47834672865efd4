# SPDX-License-Identifier: Apache-2.0
"""Footprints of the methods that FedKRSO is compared with, traced in the same way: full fine-tuning, and LoRA on
bitsandbytes' int8.

LoRA's layer does what PEFT and bitsandbytes do on a processor: the weight is dequantised whole, forward and backward,
and the whole input stays on the autograd context although the weight is frozen. docs/benchmarks.md compares these
traces with the real packages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from edge_client.memory.planner import halvings
from edge_client.worker.data.tasks import Encoded, pad
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.loading import empty_model
from edge_client.worker.trace.outline import Outline, untouched
from edge_client.worker.trace.points import Traces, Tracing
from edge_client.worker.trace.shapes import fake_model
from edge_client.worker.trace.trace import Step
from edge_client.worker.train.trainer import set_checkpointing
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.device.memoryplan import Footprint, Point
from fedcore.weights.schema import ModelSchema

__all__ = ["full_footprint", "lora_footprint"]


class _KeepsInput(torch.autograd.Function):
    """x W^T as bitsandbytes computes it in training on a processor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _LoraLinear) -> Tensor:
        ctx.x, ctx.layer = x, layer
        return nn.functional.linear(x, layer.weight())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
        return gy.matmul(ctx.layer.weight()), None


class _LoraLinear(nn.Module):
    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("q", torch.from_numpy(untouched((rows, columns), "i1")))
        self.register_buffer("scale", torch.from_numpy(untouched((rows,), "<f4")))
        self.a = nn.Linear(columns, rank, bias=False)
        self.b = nn.Linear(rank, rows, bias=False)
        self.in_features, self.out_features = columns, rows

    def weight(self) -> Tensor:
        scale: Tensor = self.scale  # type: ignore[assignment]
        q: Tensor = self.q  # type: ignore[assignment]
        weight: Tensor = q.to(torch.float32).mul_(scale[:, None])
        return weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _KeepsInput.apply(x, self)  # type: ignore[no-untyped-call]
        low_rank: Tensor = self.b(self.a(x)) * 2.0
        return y + low_rank


def lora_footprint(
    folder: Path,
    schema: ModelSchema,
    task: TaskSection,
    *,
    rank: int,
    batch_size: int,
    longest: int,
    runtime_bytes: int,
    tracing: Tracing | None = None,
) -> Footprint:
    """LoRA of a rank on all linear layers that FedKRSO trains, int8 weights, AdamW in float32."""
    model = empty_model(folder, task)
    model.requires_grad_(False)
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    head = model.get_output_embeddings() if task_of(task).outputs() is None else None
    rows = columns = weights = 0
    for name, module in linear:
        if module is head or ".layer" not in f".{name}":
            continue
        parent, _, last = name.rpartition(".")
        m, n = module.out_features, module.in_features
        setattr(model.get_submodule(parent), last, _LoraLinear(m, n, rank))
        rows, columns, weights = rows + m, columns + n, weights + m * n + 4 * m
    trained = _unlock(model, schema)
    _materialise(model)
    model.train()
    # `load_in_8bit` leaves the rest in the checkpoint's dtype.
    others = _float_bytes(model) - 4 * rank * (rows + columns) - _saved_by_dtype(folder, task)
    step = Step(task, _own_loss, gradients_apart=True)
    points = _points(model, step, batch_size, longest, tracing or Tracing())
    return _as_footprint(points, longest, runtime_bytes, weights, others, 4 * 4 * (rows + columns), 3 * 4 * trained)


def full_footprint(
    folder: Path,
    task: TaskSection,
    *,
    batch_size: int,
    longest: int,
    runtime_bytes: int,
    tracing: Tracing | None = None,
) -> Footprint:
    """All weights in float32, with gradients and AdamW's moments."""
    model = empty_model(folder, task)
    _materialise(model)
    model.requires_grad_(True)
    model.train()
    held = _float_bytes(model)
    step = Step(task, _own_loss, gradients_apart=False)
    points = _points(model, step, batch_size, longest, tracing or Tracing())
    return _as_footprint(points, longest, runtime_bytes, held, 0, 0, 2 * held)


def _as_footprint(
    points: tuple[Point, ...],
    longest: int,
    runtime_bytes: int,
    weights: int,
    others: int,
    rank_bytes: int,
    tensors_bytes: int,
) -> Footprint:
    return Footprint(
        longest=longest,
        runtime_bytes=runtime_bytes,
        weights_bytes=weights,
        largest_layer_bytes=weights,
        embeddings_bytes=others,
        mappable_embeddings_bytes=0,
        subspaces_bytes=0,
        rank_bytes=rank_bytes,
        tensors_bytes=tensors_bytes,
        row_bytes=0,
        signs_bytes=0,
        points=points,
    )


def _points(module: nn.Module, step: Step, batch_size: int, longest: int, tracing: Tracing) -> tuple[Point, ...]:
    model = BuiltModel(module)
    fake_model(model, tracing.shapes)
    sizes = [(size, longest) for size in halvings(batch_size, 1)]
    traces = Traces(model, tracing.shapes, step, whole=tracing.whole)
    return traces.points(sizes, _recompute, tracing.progress, when_asked=tracing.when_asked)


def _own_loss(
    model: BuiltModel, batch: Sequence[Encoded], _: TaskSection, pad_id: int, torch_device: torch.device
) -> Tensor:
    """The model's own loss: all logits at once."""
    inputs = pad(batch, pad_id, torch_device)
    targets = [e.target for e in batch]
    labels = inputs["input_ids"] if targets[0] is None else torch.tensor(targets)
    found: Tensor = model.module(**inputs, labels=labels).loss
    return found


def _recompute(model: nn.Module, checkpointing: bool, gates: bool) -> bool:
    set_checkpointing(model, checkpointing)
    return not gates


def _saved_by_dtype(folder: Path, task: TaskSection) -> int:
    """Bytes that embeddings take less than in float32, since they are stored in 16 bits."""
    tables = ("embeddings.weight", "embed_tokens.weight", "wte.weight", "lm_head.weight")
    entries = (entry for name, entry in Outline(folder, task).tensors.items() if name.endswith(tables))
    return sum(entry.size_bytes for entry in entries if entry.dtype in ("BF16", "F16"))


def _unlock(model: Any, schema: ModelSchema) -> int:
    """Train new heads; how many numbers they have."""
    count = 0
    for spec in schema.tensors:
        if not spec.in_checkpoint:
            model.get_parameter(spec.name).requires_grad_(True)
            count += math.prod(spec.shape)
    return count


def _materialise(model: nn.Module) -> None:
    """Parameters from the meta device become zeros that take no memory until they are written; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and (parameter.is_meta or id(parameter) in made):
                if id(parameter) not in made:
                    value = torch.from_numpy(untouched(tuple(parameter.shape), "<f4"))
                    made[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]


def _float_bytes(model: nn.Module) -> int:
    """Parameters and floating-point buffers that are there anyway, without int8 weights and their scales."""
    buffers = sum(b.numel() * b.element_size() for n, b in model.named_buffers() if not n.endswith((".q", ".scale")))
    return sum(p.numel() * p.element_size() for p in model.parameters()) + buffers
