# SPDX-License-Identifier: Apache-2.0
"""Which token comes next, of a model's logits."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_client.worker.generate.tokens import Constraint
from fedcore.config.generation import GenerationOptions

__all__ = ["Picker"]


class Picker:
    """Picks an answer's tokens, one after the other.

    Args:
        options: Greedy, or how to draw.
        constraint: Which tokens may come; None: all.
    """

    def __init__(self, options: GenerationOptions, constraint: Constraint | None = None) -> None:
        self._options, self._constraint = options, constraint
        # On the processor, so that a seed means the same everywhere.
        self._randomness = torch.Generator().manual_seed(options.seed)

    def pick(self, logits: Tensor) -> int:
        """The next token, of logits (v,)."""
        logits = logits.float()
        if self._constraint is not None:
            logits = _allowed(logits, self._constraint.allowed())
        token = int(logits.argmax()) if self._options.greedy else self._drawn(logits.cpu())
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    def _drawn(self, logits: Tensor) -> int:
        options = self._options
        # Sorted, so that both limits are cuts of the same list.
        count = min(options.top_k or len(logits), len(logits))
        largest, tokens = logits.topk(count)
        probability = (largest / options.temperature).softmax(-1)
        if options.top_p < 1:
            # Those before which less than top_p has been used up: the first at least.
            probability = probability * (probability.cumsum(-1) - probability < options.top_p)
        return int(tokens[torch.multinomial(probability, 1, generator=self._randomness)])


def _allowed(logits: Tensor, mask: Tensor) -> Tensor:
    """The logits with -inf for all that may not come."""
    mask = mask[: len(logits)].to(logits.device)
    whole = torch.full_like(logits, float("-inf"))
    whole[: len(mask)] = logits[: len(mask)].masked_fill(~mask, float("-inf"))
    return whole
