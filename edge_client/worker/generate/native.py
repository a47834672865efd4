# SPDX-License-Identifier: Apache-2.0
"""From a model of Llama's shape in torch's hands to the parts that the compiled pass takes: the same memory, no
copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from edge_client.worker.compiled.native import LINEAR, Parts, PartsBlock, PartsLinear, PartsNorm, Rows
from edge_client.worker.generate.llama import Block, LlamaParts, Norm
from edge_client.worker.generate.products import LinearProduct, StoredMatrix, TensorKernel, numbers_of
from edge_client.worker.model.embedding import FrozenEmbedding

__all__ = ["native_parts"]

_ANGLES_AGREE = 1e-4


def native_parts(parts: LlamaParts, head: LinearProduct, kernel: TensorKernel) -> Parts | None:
    """A model's parts for the compiled pass; None where one of them is none that it takes.

    Args:
        parts: The model's.
        head: Its output head.
        kernel: What has been compiled.
    """
    table: Any = parts.backbone.embed_tokens
    products = [getattr(block, name) for block in parts.blocks for name in LINEAR]
    if type(table) not in (nn.Embedding, FrozenEmbedding) or not all(isinstance(p, LinearProduct) for p in products):
        return None
    stored = [part for product in (head, *products) for part in (product.weight, *(product.side or ()))]
    if kernel.kernel is None or not all(map(kernel.takes, (table.weight, *(part.weight for part in stored)))):
        return None
    rotary: Any = parts.backbone.rotary_emb
    frequencies = getattr(rotary, "inv_freq", None)
    if not isinstance(frequencies, torch.Tensor) or frequencies.ndim != 1:
        return None
    found = Parts(
        numbers_of(table.weight),
        tuple(map(_block, parts.blocks)),
        _norm(parts.norm),
        _linear(head),
        numbers_of(frequencies.to(torch.float32)),
        float(getattr(rotary, "attention_scaling", 1.0)),
        heads=parts.heads,
        key_heads=parts.key_heads,
        features=parts.features,
        scaling=parts.scaling,
    )
    return found if found.fits(kernel.kernel) and _turns_alike(parts, found) else None


def _turns_alike(parts: LlamaParts, found: Parts) -> bool:
    """Whether angles are the model's own, at its last position too: some models have others there."""
    last = int(getattr(parts.backbone.config, "max_position_embeddings", 0) or 2) - 1
    for seen in (0, last // 2, last):
        _, *expected = parts.begun([0], seen)
        pairs = zip(expected, found.angles(seen, 1), strict=True)
        if any(float(np.abs(one.numpy() - own).max()) > _ANGLES_AGREE for one, own in pairs):
            return False
    return True


def _block(block: Block) -> PartsBlock:
    norms = {name: _norm(getattr(block, name)) for name in ("before_attention", "before_mlp")}
    inside = {
        name: None if (norm := getattr(block, name)) is None else _norm(norm) for name in ("query_norm", "key_norm")
    }
    return PartsBlock(**norms, **inside, **{name: _linear(getattr(block, name)) for name in LINEAR})  # type: ignore[arg-type]


def _linear(product: LinearProduct) -> PartsLinear:
    side = None if product.side is None else (_rows(product.side[0]), _rows(product.side[1]))
    bias = None if product.bias is None else numbers_of(product.bias.to(torch.float32))
    return PartsLinear(_rows(product.weight), bias, side)


def _rows(stored: StoredMatrix) -> Rows:
    return Rows(numbers_of(stored.weight), None if stored.scale is None else numbers_of(stored.scale))


def _norm(norm: Norm) -> PartsNorm:
    return PartsNorm(numbers_of(norm.weight.to(torch.float32)), norm.eps)
