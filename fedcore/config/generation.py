# SPDX-License-Identifier: Apache-2.0
"""How a language model answers: how long, how freely, and what ends an answer."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["GenerationOptions"]


class GenerationOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an answer is made. As it stands, greedy: the likeliest token, every time.

    Example:
        >>> GenerationOptions(temperature=0.7, stop=("\\n",)).greedy
        False
    """

    max_new_tokens: Annotated[int, Meta(ge=1, le=2**20)] = 256
    """Tokens at most; the model's context and the memory for it may end an answer before."""
    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """What logits are divided by before one is drawn; 0 takes the likeliest."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Draw among the likeliest tokens that together have this probability."""
    top_k: Annotated[int, Meta(ge=0, le=2**20)] = 0
    """Draw among this many of the likeliest; 0: all."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    """Of the draws: the same seed, model and prompt give the same answer on the same machine."""
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=1000)], ...], Meta(max_length=16)] = ()
    """Texts that end an answer; they are not part of it."""

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0 or self.top_k == 1
