# SPDX-License-Identifier: Apache-2.0
"""Which token comes next, of a model's logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_client.worker.compiled.tokens import Constraint
from fedcore.config.generation import GenerationOptions

__all__ = ["Picker"]

_FIRST, _MORE = 256, 16
"""Tokens that are sorted at first, and how many times as many then: sorting all takes longer than a small model's pass.
"""


class Picker:
    """Picks an answer's tokens, one after the other.

    Args:
        options: Greedy, or how to draw.
        constraint: Which tokens may come; None: all.
    """

    def __init__(self, options: GenerationOptions, constraint: Constraint | None = None) -> None:
        self._options, self._constraint = options, constraint
        self._randomness = np.random.Generator(np.random.PCG64(options.seed))

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token, of logits (v,)."""
        if self._constraint is not None:
            logits = _allowed(logits, self._constraint.allowed())
        token = int(logits.argmax()) if self._options.greedy else self._drawn(logits)
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    def _drawn(self, logits: NDArray[np.float32]) -> int:
        """By one uniform number and the sums of probabilities."""
        options = self._options
        # As many times a token's probability as the likeliest one's says.
        odds = np.exp((logits.astype(np.float64) - float(logits.max())) / options.temperature)
        tokens = _likeliest(odds, options.top_k) if options.top_k else np.arange(len(odds))
        if options.top_p < 1:
            tokens = _nucleus(odds, tokens, options.top_p)
        sums = np.cumsum(odds[tokens])
        drawn = np.searchsorted(sums, self._randomness.random() * sums[-1], side="right")
        # A product that was rounded up is the last token's that can come.
        return int(tokens[min(drawn, np.searchsorted(sums, sums[-1]))])


def _likeliest(odds: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Places of the largest numbers, the largest first."""
    places = np.argpartition(-odds, count)[:count] if count < len(odds) else np.arange(len(odds))
    return np.asarray(places[np.argsort(-odds[places], kind="stable")])


def _nucleus(odds: NDArray[np.float64], tokens: NDArray[np.intp], top_p: float) -> NDArray[np.intp]:
    """Those before which less than `top_p` of all has been used up, the likeliest first: one at least."""
    own, count = odds[tokens], _FIRST
    limit = top_p * own.sum()
    while True:
        places = _likeliest(own, count)
        sums = np.cumsum(own[places])
        if sums[-1] >= limit or count >= len(own):
            before = np.concatenate(([0.0], sums[:-1]))
            return np.asarray(tokens[places[: np.searchsorted(before, limit)]])
        count *= _MORE


def _allowed(logits: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The logits with -inf for all that may not come."""
    mask = mask[: len(logits)]
    whole = np.full_like(logits, -np.inf)
    whole[: len(mask)][mask] = logits[: len(mask)][mask]
    return whole
