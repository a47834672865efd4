# SPDX-License-Identifier: Apache-2.0
"""One answer token by token, of whatever gives logits: by the compiled pass, or by torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_client.worker.compiled.sampling import Picker
from edge_client.worker.compiled.text import TextStream
from edge_client.worker.compiled.tokens import Constraint, Token
from fedcore.config.generation import GenerationOptions
from fedcore.errors import ModelError

__all__ = ["Engine", "Writer"]


class Engine(Protocol):
    """From tokens to logits, with a cache of what has been seen."""

    def at_work(self) -> AbstractContextManager[None]:
        """Inside, the model is as it is when nothing is learned."""
        ...

    def begin(self, prompt: Sequence[int]) -> NDArray[np.float32]:
        """Logits (v,) after a prompt."""
        ...

    def next(self, token: int) -> NDArray[np.float32]:
        """Logits (v,) after one more token."""
        ...


class Writer:
    """Makes answers. One answer at a time; not for two threads at once.

    Args:
        engine: The model at work.
        tokenizer: The model's.
        context_tokens: Tokens of prompt and answer together, at most.
        end_tokens: Tokens that end an answer.
    """

    def __init__(self, engine: Engine, tokenizer: Any, context_tokens: int, end_tokens: frozenset[int]) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self.context_tokens = context_tokens
        """Tokens of prompt and answer together, at most."""
        self.end_tokens = end_tokens
        """Tokens that end an answer."""

    def stream(
        self, prompt_ids: Sequence[int], options: GenerationOptions, constraint: Constraint | None = None
    ) -> Iterator[Token]:
        """An answer, as it is made. To stop it, stop asking and close the iterator.

        Args:
            prompt_ids: The prompt. What it has in common with the prompt and answer before it is not computed again.
            options: How to answer.
            constraint: Which tokens may come, a new one for each answer.

        Yields:
            The tokens; the last one has a `finish`, and no other.

        Raises:
            ModelError: The prompt is empty, or too long for the context; at the call, before the first token.
        """
        self.check(len(prompt_ids))
        return self._streamed(list(prompt_ids), options, constraint)

    def check(self, prompt_tokens: int) -> None:
        """Return if a prompt of so many tokens can be answered.

        Raises:
            ModelError: It is empty, or too long for the context.
        """
        if not prompt_tokens:
            raise ModelError("an empty prompt", remedy="give at least one token")
        if prompt_tokens >= self.context_tokens:
            raise ModelError(
                f"a prompt of {prompt_tokens:,} tokens; the context holds {self.context_tokens:,} with the answer",
                remedy="shorten it",
            )

    def _streamed(
        self, prompt: list[int], options: GenerationOptions, constraint: Constraint | None
    ) -> Iterator[Token]:
        picker, text = Picker(options, constraint), TextStream(self._tokenizer, options.stop)
        left = min(options.max_new_tokens, self.context_tokens - len(prompt))
        with self._engine.at_work():
            logits = self._engine.begin(prompt)
            while True:
                token = picker.pick(logits)
                left -= 1
                if token in self.end_tokens:
                    yield Token(token, text.rest(), "stop")
                    return
                said = text.take(token)
                if text.stopped or not left:
                    yield Token(token, said + text.rest(), "stop" if text.stopped else "length")
                    return
                yield Token(token, said)
                logits = self._engine.next(token)
