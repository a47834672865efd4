# SPDX-License-Identifier: Apache-2.0
"""From tokens to the logits of what follows, with a cache of what has been seen: through a pass of our own where the
model has one, compiled or of torch's operations for single tokens, else through transformers'."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from edge_client.worker.compiled.engine import CHUNK_TOKENS, CompiledEngine, common_tokens
from edge_client.worker.generate.cache import PlannedLayer, planned_cache
from edge_client.worker.generate.llama import LlamaStep, llama_parts, product_of
from edge_client.worker.generate.native import native_parts
from edge_client.worker.generate.products import LinearProduct, TensorKernel, numbers_of, products_of, replaced
from edge_client.worker.model.built import BuiltModel

__all__ = ["Engine"]

_TOLERANCE = 1e-4
"""Of the largest number of a hidden state: what two ways to compute it may differ by, in float32."""

_Step = LlamaStep | CompiledEngine
_Way = Literal["compiled", "torch", "transformers"]
"""A pass of our own, compiled or of torch's operations, or that of transformers alone."""


class Engine:
    """A model at work on one answer after the other, or on a batch.

    Args:
        model: With what has been learned installed.
        kernel: Faster products, or None.
        context_tokens: Tokens that an answer's cache has room for.
    """

    def __init__(self, model: BuiltModel, kernel: TensorKernel | None, context_tokens: int) -> None:
        self._model, self._kernel, self._context_tokens = model, kernel, context_tokens
        self._module: Any = model.module
        self._takes = frozenset(inspect.signature(self._module.forward).parameters)
        self._products = products_of(model, kernel)
        self._seen: list[int] = []
        self._cache: Any = None
        self._way: _Way | None = None
        self._step: _Step | None = None

    @property
    def how(self) -> str:
        """How single tokens are computed, for a person."""
        step = self._own_pass()
        if isinstance(step, CompiledEngine):
            return step.how
        products = "products of torch" if self._kernel is None else "compiled products"
        return f"{products}, {'pass of transformers' if step is None else 'own pass'}"

    def refresh(self) -> None:
        """The model's weights, or what it has learned, are others now."""
        self._products = products_of(self._model, self._kernel)
        self._cache, self._seen, self._step = None, [], None

    @property
    def compiled(self) -> CompiledEngine | None:
        """The pass that needs no torch, where the model has one that gives what transformers gives."""
        step = self._own_pass()
        return step if isinstance(step, CompiledEngine) else None

    @torch.inference_mode()
    def begin(self, prompt: Sequence[int]) -> NDArray[np.float32]:
        """Logits (v,) after a prompt. What it has in common with what was seen last is not computed again."""
        if (own := self.compiled) is not None:
            own.threads = torch.get_num_threads()
            return own.begin(prompt)
        kept = self._keep_common(prompt)
        for start in range(kept, len(prompt), CHUNK_TOKENS):
            logits = self._pass(prompt[start : start + CHUNK_TOKENS])
        return numbers_of(logits.float().cpu())

    @torch.inference_mode()
    def next(self, token: int) -> NDArray[np.float32]:
        """Logits (v,) after one more token."""
        if isinstance(self._step, CompiledEngine):
            return self._step.next(token)
        return numbers_of(self._pass([token]).float().cpu())

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
        if isinstance(self._step, LlamaStep) and self._seen and len(ids) == 1:
            logits = self._logits(self._step(ids[0], self._cache.layers))
        else:
            logits = self._of_transformers(ids, self._cache)
        self._seen += ids
        return logits

    def _of_transformers(self, ids: Sequence[int], cache: Any) -> Tensor:
        tokens = torch.tensor([list(ids)], device=self.device)
        return self.forward(input_ids=tokens, past_key_values=cache)[0]

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
        common = common_tokens(self._seen, prompt) if _can_crop(self._cache) else 0
        if common == 0:
            # The one before goes first: both at once would be a peak.
            self._cache = None
            self._cache = planned_cache(self._module.config, self._context_tokens)
        else:
            self._cache.crop(common - len(self._seen))
        self._seen = self._seen[:common]
        return common

    def _own_pass(self) -> _Step | None:
        """The fastest pass of our own; None where there is none. Which way that is, is found out once; what it is made
        of may be other weights after `refresh`."""
        if self._step is not None or self._way == "transformers":
            return self._step
        with torch.inference_mode(), self.at_work():
            if self._way is None:
                ways: tuple[_Way, ...] = ("compiled", "torch")
                self._way = next((way for way in ways if self._agrees(self._made(way))), "transformers")
            self._step = self._made(self._way)
        return self._step

    def _made(self, way: _Way | None) -> _Step | None:
        parts = None if way in (None, "transformers") else llama_parts(self._module, self._products)
        if parts is None:
            return None
        if way == "torch":
            return LlamaStep(parts)
        head = self._module.get_output_embeddings()
        product = self._products.get(head) or product_of(head)
        if self._kernel is None or self._kernel.kernel is None or not isinstance(product, LinearProduct):
            return None
        native = native_parts(parts, product, self._kernel)
        if native is None:
            return None
        return CompiledEngine(native, self._kernel.kernel, self._context_tokens, torch.get_num_threads())

    def _agrees(self, step: _Step | None) -> bool:
        """Whether a pass gives what transformers gives, of a few tokens at once and of the last one alone."""
        if step is None:
            return False
        ids = [token % self._module.config.vocab_size for token in range(2, 8)]
        whole, parts = (planned_cache(self._module.config, len(ids)) for _ in range(2))
        expected = self._of_transformers(ids, whole)
        self._of_transformers(ids[:-1], parts)
        # A model whose cache forgets, such as one with a sliding window, would agree on so few tokens.
        if not _can_crop(parts):
            return False
        if isinstance(step, CompiledEngine):
            step.begin(ids[:-3])
            step.begin(ids[:-1])
            got = torch.from_numpy(step.next(ids[-1]))
        else:
            got = self._logits(step(ids[-1], parts.layers))
        return bool((expected - got).abs().max() <= _TOLERANCE * expected.abs().max())


def _can_crop(cache: Any) -> bool:
    """Whether a cache's last tokens can be forgotten: it keeps all that were seen."""
    return cache is not None and bool(cache.layers) and all(type(layer) is PlannedLayer for layer in cache.layers)
