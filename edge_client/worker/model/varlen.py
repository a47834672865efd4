# SPDX-License-Identifier: Apache-2.0
"""A language model's micro-batch end to end in one row, without padding, each example attending to itself alone.

Short texts of different length are half padding when they lie side by side. End to end, with positions that begin anew
in each, every product, norm and activation sees real tokens only, and attention (which transformers lets one name by
a function) takes the examples one by one, causal and without a mask.

Whether an architecture computes the same in this way is seen by numbers, on a few tokens when a model is loaded;
one that does not, or does not take positions, goes on with padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from edge_client.worker.model.built import BuiltModel

__all__ = ["ATTENTION", "end_to_end", "leave_padding_out"]

ATTENTION = "fedkrso_varlen"
"""What transformers calls `_attention`."""

# Attention that sees less than all tokens before is made by masks, which there are none of here.
_WINDOWS = ("sliding_window", "attention_chunk_size")
_PROBE = ((5, 9, 2, 7, 11, 3, 4), (5, 9, 8), (6, 2, 13, 12, 10))


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention as transformers computes it, of each example in a row (1, heads, t, n); of a padded
    micro-batch where no `row_lengths` are among the arguments. (b, t, heads, n)."""
    lengths: tuple[int, ...] = kwargs.pop("row_lengths", ())
    if not lengths:
        whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return whole
    rows = zip(*(torch.split(tensor, list(lengths), dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *row, None, **kwargs)[0] for row in rows], dim=1), None


def end_to_end(
    model: BuiltModel, rows: Sequence[Sequence[int]], torch_device: torch.device
) -> tuple[Tensor, list[int]] | None:
    """Hidden states (t, n) of all tokens of some examples, and where each example begins; None where the model is to be
    given padding."""
    longest = max(map(len, rows))
    if not model.padding.end_to_end or any(longest > size for size in _windows(model)):
        return None
    ids = torch.tensor([list(itertools.chain(*rows))], device=torch_device)
    places = torch.tensor([[place for row in rows for place in range(len(row))]], device=torch_device)
    model.padding.see(torch.ones_like(ids))
    hidden = model.backbone(
        input_ids=ids,
        position_ids=places,
        # A mask of four dimensions is taken as it is, and then not looked at.
        attention_mask=torch.zeros(1, 1, 1, 1, device=torch_device),
        row_lengths=tuple(map(len, rows)),
    ).last_hidden_state
    return hidden[0], [0, *itertools.accumulate(map(len, rows))][:-1]


@torch.no_grad()
def leave_padding_out(model: BuiltModel, torch_device: torch.device) -> bool:
    """Have a language model's micro-batches computed end to end from now on, if it says the same of them; whether it
    does."""
    config: Any = model.module.config
    padding = model.padding
    if model.output_weight is None or getattr(config, "_attn_implementation", None) != "sdpa":
        return False
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    alone = [model.backbone(input_ids=torch.tensor([row], device=torch_device)).last_hidden_state[0] for row in _PROBE]
    config._attn_implementation, padding.end_to_end = ATTENTION, True
    try:
        found = end_to_end(model, _PROBE, torch_device)
        same = found is not None and _close(model, found[0], torch.cat(alone))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        # It takes other arguments, or its layers hand none on.
        same = False
    if not same:
        config._attn_implementation, padding.end_to_end = "sdpa", False
    return same


def _close(model: BuiltModel, got: Tensor, wanted: Tensor) -> bool:
    exact = all(layer.compute_dtype == torch.float32 for layer in model.layers.values())
    return float((got - wanted).abs().max()) <= (1e-4 if exact else 3e-2) * float(wanted.abs().max())


def _windows(model: BuiltModel) -> list[int]:
    """How many tokens back attention sees, where that is bounded."""
    found = (getattr(model.module.config, name, None) for name in _WINDOWS)
    return [size for size in found if isinstance(size, int)]
