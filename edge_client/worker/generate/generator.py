# SPDX-License-Identifier: Apache-2.0
"""Generation with a KV cache: one answer token by token, or many at once for an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from edge_client.worker.compiled.engine import CompiledEngine
from edge_client.worker.compiled.kernel import kernel_for
from edge_client.worker.compiled.text import TextStream
from edge_client.worker.compiled.tokens import Constraint, Token
from edge_client.worker.compiled.writing import Writer
from edge_client.worker.generate.batch import Batches, greedy_answers
from edge_client.worker.generate.engine import Engine
from edge_client.worker.generate.products import TensorKernel
from edge_client.worker.model.built import BuiltModel
from fedcore.config.generation import GenerationOptions

__all__ = ["Generator", "positions_of"]

_BATCHES = Batches()


class Generator:
    """Makes answers with a causal model. One answer at a time; not for two threads at once.

    Args:
        model: On a base, with what has been learned installed; or `BuiltModel(module)` for any causal model of
            transformers.
        tokenizer: The model's.
        context_tokens: Tokens of prompt and answer that there is memory for; None: as many as the model has positions.
        compiled: Use products that are compiled on this machine, where it has a compiler.
    """

    def __init__(
        self, model: BuiltModel, tokenizer: Any, context_tokens: int | None = None, *, compiled: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        positions = positions_of(model.module.config)
        context = min(context_tokens or positions, positions)
        kernel = kernel_for() if compiled else None
        self._engine = Engine(model, None if kernel is None else TensorKernel(kernel), context)
        self.writer = Writer(self._engine, tokenizer, context, _end_tokens(model, tokenizer))
        """Makes one answer after the other."""

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self.writer.context_tokens

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self.writer.end_tokens

    @property
    def how(self) -> str:
        """How single tokens are computed, for a person: `compiled products, own pass`."""
        return self._engine.how

    @property
    def compiled(self) -> CompiledEngine | None:
        """The pass that needs no torch, where the model has one that gives what transformers gives."""
        return self._engine.compiled

    def refresh(self) -> None:
        """What the model has learned has changed, or its weights: the next answer is of the new state. To be called
        between answers."""
        self._engine.refresh()

    def stream(
        self, prompt_ids: Sequence[int], options: GenerationOptions, constraint: Constraint | None = None
    ) -> Iterator[Token]:
        """An answer, as it is made (`Writer.stream`)."""
        return self.writer.stream(prompt_ids, options, constraint)

    @torch.inference_mode()
    def batch(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions, batches: Batches = _BATCHES
    ) -> list[list[int]]:
        """Greedy answers to many prompts, for an evaluation; end-of-text and stop texts are cut off. The model's state
        is the one of this moment, whether or not `refresh` was called.

        Args:
            prompts: Their tokens; they may be of different lengths.
            options: Of these only `max_new_tokens` and `stop` count.
            batches: How many at a time: each has a cache of its own (`cache_bytes`).

        Returns:
            The new tokens of each.

        Raises:
            ModelError: A prompt is empty, or too long for the context.
        """
        for prompt in prompts:
            self.writer.check(len(prompt))
        texts = [TextStream(self._tokenizer, options.stop) for _ in prompts]

        def ended(prompt: int, token: int) -> bool:
            if token in self.end_tokens:
                return True
            if options.stop:
                texts[prompt].take(token)
            return texts[prompt].stopped

        self.refresh()
        # Of each by itself: an answer does not depend on which others are asked for.
        most = [min(options.max_new_tokens, self.context_tokens - len(prompt)) for prompt in prompts]
        with self._engine.at_work():
            return greedy_answers(self._engine, prompts, ended, most, batches)


def positions_of(config: Any) -> int:
    """How many tokens a model can see; 2**20 where it does not say."""
    own = config.get_text_config(decoder=True)
    return int(getattr(own, "max_position_embeddings", None) or 2**20)


def _end_tokens(model: BuiltModel, tokenizer: Any) -> frozenset[int]:
    """End-of-text as the tokenizer has it, and as the model's own files say."""
    found = {getattr(tokenizer, "eos_token_id", None)}
    for config in (model.module.config, getattr(model.module, "generation_config", None)):
        ends = getattr(config, "eos_token_id", None)
        found |= set(ends) if isinstance(ends, list | tuple) else {ends}
    return frozenset(int(token) for token in found if token is not None)
