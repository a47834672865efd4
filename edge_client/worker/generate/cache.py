# SPDX-License-Identifier: Apache-2.0
"""The KV cache in memory that was planned: one buffer a layer, in place of one that is copied for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["PlannedLayer", "cache_bytes", "planned_cache"]


class PlannedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer with full attention, in buffers of a fixed length. Pages that no token has reached yet
    take no memory.

    Args:
        context_tokens: Tokens that there is room for.
    """

    def __init__(self, context_tokens: int) -> None:
        super().__init__()
        self._context_tokens = context_tokens
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values (b, heads, t, features); gives all."""
        length = self.get_seq_length()
        if self._buffers is None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._buffers = self._buffer(key_states), self._buffer(value_states)
        self.grow(length + key_states.shape[-2])
        self.keys[:, :, length:] = key_states
        self.values[:, :, length:] = value_states
        return self.keys, self.values

    def grow(self, length: int) -> None:
        """Have `keys` and `values` show this many tokens; the new ones are for the caller to write."""
        assert self._buffers is not None
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of the batch."""
        if self._buffers is not None:
            length = self.get_seq_length()
            self._buffers = self._buffers[0][indices], self._buffers[1][indices]
            self.grow(length)

    def _buffer(self, states: Tensor) -> Tensor:
        rows, heads, _, features = states.shape
        return states.new_empty(rows, heads, self._context_tokens, features)


def planned_cache(config: Any, context_tokens: int) -> DynamicCache:
    """A model's cache, with as much room as planned in its layers of full attention; other kinds of layers, such as
    those with a sliding window, bound themselves."""
    cache = DynamicCache(config=config)
    cache.layers = [PlannedLayer(context_tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def cache_bytes(config: Any, tokens: int) -> int:
    """What one answer's cache takes when it holds this many tokens, in float32.

    Args:
        config: The model's, of transformers.
        tokens: Of prompt and answer together.
    """
    own = config.get_text_config(decoder=True)
    heads = getattr(own, "num_key_value_heads", None) or own.num_attention_heads
    features = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    layers = DynamicCache(config=config).layers or [DynamicLayer()] * own.num_hidden_layers
    held = [
        min(tokens, layer.sliding_window) if isinstance(layer, DynamicSlidingWindowLayer) else tokens
        for layer in layers
    ]
    return int(2 * heads * features * torch.float32.itemsize * sum(held))
