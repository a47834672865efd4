# SPDX-License-Identifier: Apache-2.0
"""Models of Llama's shape: their parts, and one token through them without what transformers does around it.

At one token a step, transformers' own forward pass takes twice the time of the products. Here every layer is a few
operations on buffers that are there already. A model is taken for one of this shape by its parts, and then by its
numbers: it is used only where it gives what transformers gives (`engine`). Where there is a compiler,
`edge_client.worker.compiled` does the same in one call.

Legend: n features, h heads, g key-value heads, d features a head, i features inside the MLP, s tokens so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_client.worker.generate.cache import PlannedLayer
from edge_client.worker.generate.products import LinearProduct, Product, StoredMatrix

__all__ = ["Block", "LlamaParts", "LlamaStep", "Norm", "llama_parts", "product_of"]

_BACKBONE = {"embed_tokens", "layers", "norm", "rotary_emb"}
_BLOCK = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj"}


@dataclass(frozen=True)
class Norm:
    """An RMS norm.

    Attributes:
        weight: A factor for each feature.
        eps: Added to the mean of squares.
    """

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """weight x / sqrt(mean(x^2) + eps) over the last dimension."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class Block:
    """A decoder layer's parts."""

    before_attention: Norm
    query: Product
    key: Product
    value: Product
    query_norm: Norm | None
    key_norm: Norm | None
    out: Product
    before_mlp: Norm
    gate: Product
    up: Product
    down: Product


@dataclass(frozen=True, eq=False)
class LlamaParts:
    """A model's parts.

    Attributes:
        backbone: Of a causal model, in float32 on the processor.
        blocks: Its layers.
        norm: The last one.
        heads: h.
        key_heads: g.
        features: d.
        inner: i.
        scaling: Factor on the products of queries and keys.
    """

    backbone: Any
    blocks: tuple[Block, ...]
    norm: Norm
    heads: int
    key_heads: int
    features: int
    inner: int
    scaling: float

    def begun(self, ids: Sequence[int], seen: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (t, n) of tokens, for the caller to write on, and cosines and sines (t, d) of their positions."""
        x = self.backbone.embed_tokens(torch.tensor([list(ids)]))[0].clone()
        cos, sin = self.backbone.rotary_emb(x, torch.arange(seen, seen + len(ids))[None])
        return x, cos[0], sin[0]


class LlamaStep:
    """A model's step, of torch's operations.

    Args:
        parts: The model's.
    """

    def __init__(self, parts: LlamaParts) -> None:
        self._parts = parts
        self._features, self._key_heads, self._scaling = parts.features, parts.key_heads, parts.scaling
        # (h + 2 g, d): queries, keys and values of the token, one after the other.
        self._states = torch.empty(parts.heads + 2 * parts.key_heads, parts.features)
        self._hidden = torch.empty(2, 1, parts.inner)

    def __call__(self, token: int, layers: list[PlannedLayer]) -> Tensor:
        """The last hidden state (1, n) of the next token, whose keys and values are added to the cache's layers, which
        have some of the tokens before it."""
        length = layers[0].get_seq_length()
        x, cos, sin = self._parts.begun([token], length)  # (1, n), (1, d)
        sin = sin.clone()
        # The first half of a head's features is turned the other way: x cos + swapped halves of x times this.
        sin[:, : self._features // 2].neg_()
        for block, layer in zip(self._parts.blocks, layers, strict=True):
            layer.grow(length + 1)
            self._attend(block, x, cos, sin, layer)
            inner = block.before_mlp(x)
            gate, up = self._hidden
            block.gate(inner, gate, False)
            block.up(inner, up, False)
            block.down(F.silu(gate, inplace=True).mul_(up), x, True)
        return self._parts.norm(x)

    def _attend(self, block: Block, x: Tensor, cos: Tensor, sin: Tensor, layer: PlannedLayer) -> None:
        """Add a layer's attention to x (1, n)."""
        inner, states, g, d = block.before_attention(x), self._states, self._key_heads, self._features
        query, key, value = states[: -2 * g], states[-2 * g : -g], states[-g:]
        block.query(inner, query.view(1, -1), False)
        block.key(inner, key.view(1, -1), False)
        block.value(inner, value.view(1, -1), False)
        if block.query_norm is not None and block.key_norm is not None:
            query.copy_(block.query_norm(query))
            key.copy_(block.key_norm(key))
        turned = states[:-g]  # (h + g, d)
        swapped = turned.view(-1, 2, d // 2).flip(1).view(-1, d)
        turned.mul_(cos).addcmul_(swapped, sin)
        layer.keys[0, :, -1] = key
        layer.values[0, :, -1] = value
        # (g, h / g, d) (g, d, s)
        scores = torch.bmm(query.view(g, -1, d).mul_(self._scaling), layer.keys[0].transpose(1, 2))
        seen = torch.bmm(scores.softmax(-1), layer.values[0])  # (g, h / g, d)
        block.out(seen.view(1, -1), x, True)


def llama_parts(module: Any, products: Mapping[nn.Module, Product]) -> LlamaParts | None:
    """The parts of a causal model that has Llama's, in float32 on the processor; None for any other. Whether what is
    made of them computes the same is for the caller to see.

    Args:
        module: Of transformers.
        products: Of the linear modules that have a faster one.
    """
    backbone = getattr(module, str(module.base_model_prefix), None)
    if backbone is None or {name for name, _ in backbone.named_children()} != _BACKBONE:
        return None
    if any(kind != "full_attention" for kind in getattr(module.config, "layer_types", None) or ()):
        return None
    if not all(_is_block(layer) for layer in backbone.layers):
        return None
    if any(parameter.device.type != "cpu" for parameter in backbone.parameters()):
        return None
    attention, mlp = backbone.layers[0].self_attn, backbone.layers[0].mlp
    return LlamaParts(
        backbone,
        tuple(_block(layer, products) for layer in backbone.layers),
        _norm(backbone.norm),
        heads=attention.q_proj.out_features // attention.head_dim,
        key_heads=attention.k_proj.out_features // attention.head_dim,
        features=attention.head_dim,
        inner=mlp.gate_proj.out_features,
        scaling=float(attention.scaling),
    )


def _is_block(layer: Any) -> bool:
    parts = {name for name, _ in layer.named_children()}
    if parts != _BLOCK or getattr(layer.self_attn, "sliding_window", None) is not None:
        return False
    attention = {name for name, _ in layer.self_attn.named_children()}
    mlp = {name for name, _ in layer.mlp.named_children()}
    linear = [getattr(layer.self_attn, name, None) for name in _ATTENTION]
    linear += [getattr(layer.mlp, name, None) for name in _MLP]
    sized = all(hasattr(part, "out_features") for part in linear)
    return sized and attention in (_ATTENTION, _ATTENTION | {"q_norm", "k_norm"}) and mlp - {"act_fn"} == _MLP


def _block(layer: Any, products: Mapping[nn.Module, Product]) -> Block:
    attention, mlp = layer.self_attn, layer.mlp

    def product(module: nn.Module) -> Product:
        return products.get(module) or product_of(module)

    normed = hasattr(attention, "q_norm")
    return Block(
        before_attention=_norm(layer.input_layernorm),
        query=product(attention.q_proj),
        key=product(attention.k_proj),
        value=product(attention.v_proj),
        query_norm=_norm(attention.q_norm) if normed else None,
        key_norm=_norm(attention.k_norm) if normed else None,
        out=product(attention.o_proj),
        before_mlp=_norm(layer.post_attention_layernorm),
        gate=product(mlp.gate_proj),
        up=product(mlp.up_proj),
        down=product(mlp.down_proj),
    )


def _norm(module: Any) -> Norm:
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return Norm(module.weight, float(eps))


def product_of(module: nn.Module) -> Product:
    """A module's own product, of any kind."""
    if type(module) is nn.Linear and module.weight.dtype == torch.float32:
        return LinearProduct(StoredMatrix(module.weight), module.bias, None, None)

    def product(x: Tensor, out: Tensor, add: bool) -> None:
        y = module(x)
        out.add_(y) if add else out.copy_(y)

    return product
