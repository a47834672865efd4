# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of transformers' architectures, made from their configuration classes, and one training step of
each beside transformers' own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from edge_client.worker.architecture.configuration import auto_class
from edge_client.worker.data.batches import Encoded
from edge_client.worker.data.tasks import worker_task
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.describing import describe, opened
from edge_client.worker.model.loading import build
from edge_client.worker.model.targets import targets_of
from edge_client.worker.train.agreement import Agreement, compare, plain_model, sample_batch
from fedcore.config.sections import TaskSection
from fedcore.model.base import Base
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.schema import ModelSchema

CPU = torch.device("cpu")
CAUSAL = TaskSection(kind="causal-lm", max_length=32)
LABELS = TaskSection(kind="text-classification", labels=("a", "b", "c"), max_length=32)
RANK = 4

# Every name that some configuration has for a size.
SIZES: Mapping[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "hidden_dim", "n_inner", "d_ff", "d_inner"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "moe_intermediate_size": 32,
    "rotary_dim": 4,
    "vocab_size": 96,
    "num_experts_per_tok": 2,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def tiny_config(model_type: str, **more: Any) -> Any:
    """An architecture's configuration, two layers and 32 features small."""
    known = AutoConfig.for_model(model_type).to_dict()
    sizes = {key: size for key, size in SIZES.items() if key in known and isinstance(known[key], int | None)}
    return AutoConfig.for_model(model_type, **{**sizes, **more})


def save_tiny(folder: Path, task: TaskSection, config: Any, seed: int = 0) -> None:
    """A random model as `save_pretrained` writes it; a classifier's folder has no head."""
    torch.manual_seed(seed)
    model = auto_class(task).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than as initialised, where most logits of a small model would be alike; and no bias zero.
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    if task is LABELS:
        model = getattr(model, model.base_model_prefix)
    model.save_pretrained(folder)


@dataclass(frozen=True)
class Step:
    """One training step beside transformers'.

    Attributes:
        agreement: Logits and loss.
        layers: Layers whose gradients were compared.
        gradients: The largest difference of a factor's gradient, over the largest gradient of all.
    """

    agreement: Agreement
    layers: int
    gradients: float


def step(folder: Path, task: TaskSection) -> Step:
    """Describe, build and train one step; raises what a run would say of the folder."""
    checkpoint = Checkpoint(folder)
    schema = describe(checkpoint, task)
    agreement = compare(checkpoint, schema, task)
    batch = sample_batch(folder, task)
    reference = plain_model(checkpoint, schema, task)
    expected = _plain_gradients(reference, checkpoint, schema, task, batch)
    with tempfile.TemporaryDirectory() as scratch:
        model = build(Base(checkpoint, schema, "float32", Path(scratch)), task, 0, CPU, torch.float32)
        found = _factor_gradients(model, task, batch)
    worst = largest = 0.0
    for name, layer in model.layers.items():
        projection = layer.subspace_rows(0, RANK) * layer.scale
        wanted = expected[name] @ projection.T
        largest = max(largest, float(wanted.abs().max()))
        worst = max(worst, float((found[name] - wanted).abs().max()))
    return Step(agreement, len(found), worst / largest if largest else float("nan"))


def _factor_gradients(model: BuiltModel, task: TaskSection, batch: list[Encoded]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    for layer in model.layers.values():
        signs = torch.randint(0, 2, (RANK, layer.in_features), generator=generator, dtype=torch.int8) * 2 - 1
        layer.install(signs, RANK)
        layer.select(0)
    worker_task(task).summed_loss(model, batch, model.pad_id, CPU).backward()  # type: ignore[no-untyped-call]
    out = {}
    for name, layer in model.layers.items():
        assert layer.factor is not None
        out[name] = torch.zeros_like(layer.factor) if layer.factor.grad is None else layer.factor.grad
    return out


def _plain_gradients(
    model: Any, checkpoint: Checkpoint, schema: ModelSchema, task: TaskSection, batch: list[Encoded]
) -> dict[str, Tensor]:
    """dW (m, n) of each target layer, by the schema's names, from transformers' own loss of one text after another."""
    for one in batch:
        types = {} if one.types is None else {"token_type_ids": torch.tensor([one.types])}
        ids = torch.tensor([one.ids])
        labels = ids if one.target is None else torch.tensor([one.target])
        # Mean over what counts; router losses of mixtures have no part in it.
        loss = nn.functional.cross_entropy
        said = model(input_ids=ids, use_cache=False, **types).logits[0].float()
        if one.target is None:
            loss(said[:-1], ids[0, 1:], reduction="sum").backward()  # type: ignore[no-untyped-call]
        else:
            loss(said[None], labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    _, names = opened(checkpoint, task)
    wanted = {layer.name for layer in schema.layers}
    out: dict[str, Tensor] = {}
    for target in targets_of(model, names, checkpoint):
        parameter = model.get_parameter(target.parameter)
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for index, parts in enumerate(target.layers):
            whole = gradient[index] if target.experts else gradient
            first = 0
            for spec in parts:
                own = whole.T if spec.transposed else whole[first : first + spec.rows]
                first += spec.rows
                if spec.name in wanted:
                    out[spec.name] = out.get(spec.name, torch.zeros(spec.rows, spec.columns)) + own
    return out
