# SPDX-License-Identifier: Apache-2.0
"""A micro-batch end to end in one row, without padding, each example attending to itself alone.

Short texts of different length are half padding when they lie side by side. End to end, with positions that begin anew
in each, every product, norm and activation sees real tokens only, and attention (which transformers lets one name by
a function) takes the examples one by one, without a mask.

Language models are computed in this way, and classifiers that pool hidden states themselves
(`edge_client.worker.architecture.pooled`): transformers' own look at a place in a row of one text.

Whether an architecture computes the same in this way is seen by numbers, on a few tokens when a model is loaded;
one that does not, or does not take positions, goes on with padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from edge_client.worker.architecture.pooled import PooledClassifier
from edge_client.worker.model.built import CANNOT_RUN, BuiltModel

__all__ = ["ATTENTION", "end_to_end", "leave_padding_out"]

ATTENTION = "fedkrso_varlen"
"""What transformers calls `_attention`."""

# Attention that sees less than all tokens is made by masks, which there are none of here. A decoder's window is of
# tokens before; of those on both sides, a half lies on each.
_WINDOWS = ("sliding_window", "attention_chunk_size")
_WINDOWS_OF_BOTH_SIDES = ("local_attention", "attention_window", "window_size", "block_size")
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
    model: BuiltModel,
    rows: Sequence[Sequence[int]],
    torch_device: torch.device,
    types: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any] | None:
    """What a backbone takes of examples that lie end to end, in a row (1, t) of all of their tokens; `row_lengths` says
    how many each has. None where the model is to be given padding.

    Args:
        model: That is told of the row.
        rows: Token ids.
        torch_device: Where to compute.
        types: Token types, of a model that takes them.
    """
    padding, longest = model.padding, max(map(len, rows))
    if not padding.end_to_end or longest > padding.most_tokens:
        return None
    lengths = tuple(map(len, rows))
    padding.see_rows(lengths)

    def row(values: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([list(itertools.chain(*values))], device=torch_device)

    inputs: dict[str, Any] = {
        "input_ids": row(rows),
        "position_ids": row([range(padding.first_position, padding.first_position + length) for length in lengths]),
        # A mask of four dimensions is taken as it is, and then not looked at.
        "attention_mask": torch.zeros(1, 1, 1, 1, device=torch_device),
        "row_lengths": lengths,
    }
    return inputs if types is None else inputs | {"token_type_ids": row(types)}


@torch.no_grad()
def leave_padding_out(model: BuiltModel, torch_device: torch.device) -> bool:
    """Have a model's micro-batches computed end to end from now on, if it says the same of them; whether it does."""
    config: Any = model.module.config
    padding = model.padding
    pools = isinstance(model.module, PooledClassifier)
    if (model.output_weight is None and not pools) or getattr(config, "_attn_implementation", None) != "sdpa":
        return False
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    alone = [model.backbone(input_ids=torch.tensor([row], device=torch_device)).last_hidden_state[0] for row in _PROBE]
    config._attn_implementation, padding.end_to_end = ATTENTION, True
    padding.most_tokens = min(_windows(config), default=padding.most_tokens)
    # Models of RoBERTa's kind count from behind the padding token.
    for first in (0, model.pad_id + 1):
        padding.first_position = first
        try:
            found = end_to_end(model, _PROBE, torch_device)
            same = found is not None and _close(model, model.backbone(**found).last_hidden_state[0], torch.cat(alone))
        except CANNOT_RUN:
            # It takes other arguments, or its layers hand none on.
            same = False
        if same:
            return True
    config._attn_implementation, padding.end_to_end = "sdpa", False
    return False


def _close(model: BuiltModel, got: Tensor, wanted: Tensor) -> bool:
    exact = all(layer.compute_dtype == torch.float32 for layer in model.layers.values())
    return float((got - wanted).abs().max()) <= (1e-4 if exact else 3e-2) * float(wanted.abs().max())


def _windows(config: Any) -> Iterator[int]:
    """How long a text may be of which every token sees all that it is to see, where attention is bounded."""
    for names, sides in ((_WINDOWS, 1), (_WINDOWS_OF_BOTH_SIDES, 2)):
        found = (getattr(config, name, None) for name in names)
        for sizes in found:
            yield from (size // sides for size in (sizes if isinstance(sizes, list | tuple) else (sizes,)) if size)
