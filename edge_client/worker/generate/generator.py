# SPDX-License-Identifier: Apache-2.0
"""Generation with a KV cache: one answer token by token, or many at once for an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edge_client.worker.generate.sampling import Picker
from edge_client.worker.generate.text import TextStream
from edge_client.worker.generate.tokens import Constraint, Token
from edge_client.worker.model.built import BuiltModel
from fedcore.config.generation import GenerationOptions
from fedcore.errors import ModelError

__all__ = ["Generator"]


class Generator:
    """Makes answers with a causal model. One answer at a time; not for two threads at once.

    Args:
        model: On a base, with what has been learned installed; or `BuiltModel(module)` for any causal model of
            transformers.
        tokenizer: The model's.
        context_tokens: Tokens of prompt and answer that there is memory for; None: as many as the model has positions.
    """

    def __init__(self, model: BuiltModel, tokenizer: Any, context_tokens: int | None = None) -> None:
        self._model, self._tokenizer = model, tokenizer
        positions = int(getattr(model.module.config, "max_position_embeddings", None) or 2**20)
        self.context_tokens = min(context_tokens or positions, positions)
        """Tokens of prompt and answer together, at most."""
        self.end_tokens = _end_tokens(model, tokenizer)
        """Tokens that end an answer."""

    def refresh(self) -> None:
        """What the model has learned has changed: the next answer is of the new state."""

    def stream(
        self, prompt_ids: Sequence[int], options: GenerationOptions, constraint: Constraint | None = None
    ) -> Iterator[Token]:
        """An answer, as it is made. To stop it, stop asking and close the iterator.

        Args:
            prompt_ids: The prompt.
            options: How to answer.
            constraint: Which tokens may come, a new one for each answer.

        Yields:
            The tokens; the last one has a `finish`, and no other.

        Raises:
            ModelError: The prompt is empty, or too long for the context; at the call, before the first token.
        """
        self._check(len(prompt_ids))
        return self._streamed(list(prompt_ids), options, constraint)

    def batch(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> list[list[int]]:
        """Greedy answers to many prompts at once, for an evaluation; end-of-text and stop texts are cut off.

        Args:
            prompts: Their tokens; they may be of different lengths.
            options: Of these only `max_new_tokens` and `stop` count.

        Returns:
            The new tokens of each.

        Raises:
            ModelError: A prompt is empty, or too long for the context.
        """
        greedy = GenerationOptions(max_new_tokens=options.max_new_tokens, stop=options.stop)
        answers = []
        for prompt in prompts:
            tokens = [token for token in self.stream(prompt, greedy) if token.finish != "stop"]
            answers.append([token.id for token in tokens])
        return answers

    def _check(self, prompt_tokens: int) -> None:
        if not prompt_tokens:
            raise ModelError("an empty prompt", remedy="give at least one token")
        if prompt_tokens >= self.context_tokens:
            raise ModelError(
                f"a prompt of {prompt_tokens:,} tokens; the context holds {self.context_tokens:,} with the answer",
                remedy="shorten it",
            )

    @torch.inference_mode()
    def _streamed(
        self, prompt: list[int], options: GenerationOptions, constraint: Constraint | None
    ) -> Iterator[Token]:
        picker, text = Picker(options, constraint), TextStream(self._tokenizer, options.stop)
        left = min(options.max_new_tokens, self.context_tokens - len(prompt))
        cache: Any = None
        ids = prompt
        while True:
            logits, cache = self._logits(ids, cache)
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
            ids = [token]

    def _logits(self, ids: list[int], cache: Any) -> tuple[Tensor, Any]:
        module = self._model.module
        module.eval()
        out = module(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        module.train()
        return out.logits[0, -1], out.past_key_values


def _end_tokens(model: BuiltModel, tokenizer: Any) -> frozenset[int]:
    """End-of-text as the tokenizer has it, and as the model's own files say."""
    found = {getattr(tokenizer, "eos_token_id", None)}
    for config in (model.module.config, getattr(model.module, "generation_config", None)):
        ends = getattr(config, "eos_token_id", None)
        found |= set(ends) if isinstance(ends, list | tuple) else {ends}
    return frozenset(int(token) for token in found if token is not None)
