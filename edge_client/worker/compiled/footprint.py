# SPDX-License-Identifier: Apache-2.0
"""What the compiled pass takes of memory, counted from its buffers' shapes: exact, since they are all there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from edge_client.worker.compiled.engine import CHUNK_TOKENS
from edge_client.worker.compiled.native import Parts

__all__ = ["answer_bytes", "fitting_tokens", "mapped_bytes"]

_FLOAT_BYTES: Final = 4
_SLACK_BYTES: Final = 10_000_000
"""What the allocator and the libraries take while an answer is given."""
_WORD_BYTES: Final = 64
"""Of choosing a token, for a word: logits, and their odds in double precision."""


def answer_bytes(parts: Parts, tokens: int) -> int:
    """What one answer takes when its context is full: cache, buffers of a pass, choice of the token.

    Args:
        parts: The model's.
        tokens: Of question and answer together.
    """
    (words, n), i, d, blocks = parts.table.shape, parts.inner, parts.features, len(parts.blocks)
    heads, keys = parts.heads * d, parts.key_heads * d
    # The tokens themselves with their angles, and `Buffers` of `llama.c`.
    row = 2 * n + 4 * d + 2 * heads + 2 * keys + 2 * i + parts.side_width
    numbers = 2 * blocks * keys * tokens + row * min(tokens, CHUNK_TOKENS) + parts.heads * tokens
    return int(_FLOAT_BYTES * numbers + _WORD_BYTES * words + _SLACK_BYTES)


def mapped_bytes(parts: Parts) -> int:
    """Of its weights, what lies in files: it is resident once it was read."""
    arrays = [parts.table, parts.head.weight.weight, *(linear.weight.weight for linear in parts.linears())]
    # A table that is the head too is there once.
    once = {id(array): array for array in arrays}.values()
    return sum(array.nbytes for array in once if isinstance(array, np.memmap))


def fitting_tokens(bytes_of: Callable[[int], int], room_bytes: int, most: int) -> int:
    """How long a context may be to fit a room; 0 where not one token does.

    Args:
        bytes_of: What a context of so many tokens takes; it grows with them.
        room_bytes: For that.
        most: No longer than this.

    Example:
        >>> fitting_tokens(lambda tokens: 10 + 3 * tokens, 100, 50)
        30
    """
    if bytes_of(most) <= room_bytes:
        return most
    fits, too_long = 0, most
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if bytes_of(middle) <= room_bytes else (fits, middle)
    return fits
