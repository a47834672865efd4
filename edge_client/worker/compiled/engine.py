# SPDX-License-Identifier: Apache-2.0
"""From tokens to the logits of what follows, through the compiled pass, with a cache of what has been seen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_client.worker.compiled.kernel import Kernel
from edge_client.worker.compiled.native import NativeCache, NativeLlama, Parts

__all__ = ["CHUNK_TOKENS", "CompiledEngine", "common_tokens"]

CHUNK_TOKENS: Final = 256
"""Of a prompt, tokens that go through the model at a time: what a pass keeps does not grow with the prompt."""


class CompiledEngine:
    """A model at work on one answer after the other.

    Args:
        parts: The model's; they must fit (`Parts.fits`).
        kernel: What has been compiled.
        context_tokens: Tokens that an answer's cache has room for.
        threads: To compute with.
    """

    how: Final = "compiled, own pass"
    """How tokens are computed, for a person."""

    def __init__(self, parts: Parts, kernel: Kernel, context_tokens: int, threads: int = 1) -> None:
        self._native, self._context_tokens, self.threads = NativeLlama(parts, kernel), context_tokens, threads
        self._seen: list[int] = []
        self._cache: NativeCache | None = None

    @property
    def parts(self) -> Parts:
        """The model's."""
        return self._native.parts

    def at_work(self) -> AbstractContextManager[None]:
        """Nothing has to be otherwise meanwhile."""
        return nullcontext()

    def begin(self, prompt: Sequence[int]) -> NDArray[np.float32]:
        """Logits (v,) after a prompt. What it has in common with what was seen last is not computed again."""
        kept = common_tokens(self._seen, prompt)
        if self._cache is None or not kept:
            # The one before goes first: both at once would be a peak.
            self._cache = None
            self._cache = self._native.cache(self._context_tokens)
        self._cache.length, self._seen = kept, self._seen[:kept]
        for start in range(kept, len(prompt), CHUNK_TOKENS):
            hidden = self._pass(prompt[start : start + CHUNK_TOKENS])
        return self._native.logits(hidden, self.threads)

    def next(self, token: int) -> NDArray[np.float32]:
        """Logits (v,) after one more token."""
        return self._native.logits(self._pass([token]), self.threads)

    def _pass(self, ids: Sequence[int]) -> NDArray[np.float32]:
        assert self._cache is not None, "an answer begins with its prompt"
        hidden = self._native(ids, self._cache, self.threads)
        self._seen += ids
        return hidden


def common_tokens(seen: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens a prompt has in common with what was seen; one at least is left to compute.

    Example:
        >>> common_tokens([1, 2, 3], [1, 2, 4, 5]), common_tokens([1, 2], [1, 2])
        (2, 1)
    """
    most = min(len(seen), len(prompt) - 1)
    return next((place for place in range(most) if seen[place] != prompt[place]), max(0, most))
