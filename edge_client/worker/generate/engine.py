# SPDX-License-Identifier: Apache-2.0
"""From tokens to the logits of what follows, with a cache of what has been seen: many tokens at a time through
transformers' own forward pass, one token through a leaner one where the model has it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from edge_client.worker.generate.cache import PlannedLayer, planned_cache
from edge_client.worker.generate.kernel import Kernel
from edge_client.worker.generate.llama import LlamaStep, llama_step
from edge_client.worker.generate.products import products_of, replaced
from edge_client.worker.model.built import BuiltModel

__all__ = ["CHUNK_TOKENS", "Engine"]

CHUNK_TOKENS = 256
"""Of a prompt, tokens that go through the model at a time: what a pass keeps does not grow with the prompt."""
_TOLERANCE = 1e-4
"""Of the largest number of a hidden state: what two ways to compute it may differ by, in float32."""


class Engine:
    """A model at work on one answer after the other, or on a batch.

    Args:
        model: With what has been learned installed.
        kernel: Faster products, or None.
        context_tokens: Tokens that an answer's cache has room for.
    """

    def __init__(self, model: BuiltModel, kernel: Kernel | None, context_tokens: int) -> None:
        self._model, self._kernel, self._context_tokens = model, kernel, context_tokens
        self._module: Any = model.module
        self._takes = frozenset(inspect.signature(self._module.forward).parameters)
        self._products = products_of(model, kernel)
        self._seen: list[int] = []
        self._cache: Any = None
        self._step: LlamaStep | None = None
        self._agrees: bool | None = None

    @property
    def lean(self) -> bool:
        """Whether single tokens go the leaner way."""
        if self._agrees is None:
            with torch.inference_mode(), self.at_work():
                self._agrees = self._checked()
        return self._agrees

    @property
    def how(self) -> str:
        """How single tokens are computed, for a person."""
        products = "products of torch" if self._kernel is None else "compiled products"
        return f"{products}, {'own pass' if self.lean else 'pass of transformers'}"

    def refresh(self) -> None:
        """The model's weights, or what it has learned, are others now."""
        self._products = products_of(self._model, self._kernel)
        self._cache, self._seen, self._step = None, [], None

    def begin(self, prompt: Sequence[int]) -> Tensor:
        """Logits (v,) after a prompt. What it has in common with what was seen last is not computed again."""
        lean = self.lean
        self._step = llama_step(self._module, self._products) if lean else None
        kept = self._keep_common(prompt)
        for start in range(kept, len(prompt), CHUNK_TOKENS):
            logits = self._pass(prompt[start : start + CHUNK_TOKENS])
        return logits

    def next(self, token: int) -> Tensor:
        """Logits (v,) after one more token."""
        if self._step is None:
            return self._pass([token])
        hidden = self._step(token, self._cache.layers)
        self._seen.append(token)
        return self._logits(hidden)

    @property
    def pads(self) -> bool:
        """Whether prompts of different lengths can go side by side: the model takes positions, and attends to all that
        it has seen or to a window of it."""
        layers = planned_cache(self._module.config, 1).layers
        attends = all(isinstance(layer, PlannedLayer | DynamicSlidingWindowLayer) for layer in layers)
        return attends and self._takes >= {"position_ids", "attention_mask"}

    def cache_for(self, tokens: int) -> Any:
        """A batch's cache, with room for this many tokens a row."""
        return planned_cache(self._module.config, tokens)

    def give_back(self) -> None:
        """Let the kernel have the pages of a head that is mapped from disk until its next use."""
        if self._model.output_weight is not None:
            self._model.output_weight.release()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, the model is as it is when nothing is learned."""
        training = self._module.training
        self._module.eval()
        # No micro-batch of a training step has a say here.
        self._model.padding.see(torch.ones(0))
        try:
            yield
        finally:
            self._module.train(training)

    def forward(self, **inputs: Any) -> Tensor:
        """Logits (b, v) after the last tokens; transformers' own pass, with those of the inputs that it takes."""
        known = {name: value for name, value in inputs.items() if name in self._takes}
        if "logits_to_keep" in self._takes:
            known["logits_to_keep"] = 1
        with replaced(self._products):
            logits: Tensor = self._module(**known, use_cache=True).logits
        return logits[:, -1].float()

    def _pass(self, ids: Sequence[int]) -> Tensor:
        tokens = torch.tensor([list(ids)], device=self.device)
        logits = self.forward(input_ids=tokens, past_key_values=self._cache)
        self._seen += ids
        return logits[0]

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = self._module.device
        return device

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits (v,) of a last hidden state (1, n)."""
        head = self._module.get_output_embeddings()
        product = self._products.get(head)
        if product is None:
            logits: Tensor = head(hidden)[0]
            return logits
        logits = hidden.new_empty(1, head.out_features)
        product(hidden, logits, False)
        return logits[0]

    def _keep_common(self, prompt: Sequence[int]) -> int:
        """Bring the cache to what it has in common with a prompt; how many tokens that is. One at least is left to
        compute."""
        layers = [] if self._cache is None else self._cache.layers
        common = 0
        if layers and all(type(layer) is PlannedLayer for layer in layers):
            while common < min(len(self._seen), len(prompt) - 1) and self._seen[common] == prompt[common]:
                common += 1
        if common == 0:
            self._cache, self._seen = planned_cache(self._module.config, self._context_tokens), []
        else:
            self._cache.crop(common - len(self._seen))
            self._seen = self._seen[:common]
        return common

    def _checked(self) -> bool:
        """Whether the leaner way gives what transformers gives: a few tokens at once, and again with the last alone."""
        step = llama_step(self._module, self._products)
        if step is None:
            return False
        ids = [token % self._module.config.vocab_size for token in range(2, 8)]
        whole, parts = (planned_cache(self._module.config, len(ids)) for _ in range(2))
        tokens = torch.tensor([ids])
        expected = self.forward(input_ids=tokens, past_key_values=whole)[0]
        self.forward(input_ids=tokens[:, :-1], past_key_values=parts)
        if not all(type(layer) is PlannedLayer for layer in parts.layers):
            return False
        got = self._logits(step(ids[-1], parts.layers))
        return bool((expected - got).abs().max() <= _TOLERANCE * expected.abs().max())
