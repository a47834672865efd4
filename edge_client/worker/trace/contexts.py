# SPDX-License-Identifier: Apache-2.0
"""What answering will keep in memory, by context length: one function for `fedkrso profile`, which has a `config.json`,
and for the worker that serves, which has the model.

Weights and cache follow from shapes. What a pass needs beside them is found as in training (`trace`): the real pass
over the last tokens of a full context, on tensors that are only shapes."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from edge_client.worker.compiled.engine import CHUNK_TOKENS
from edge_client.worker.compiled.footprint import fitting_tokens
from edge_client.worker.generate.cache import cache_bytes
from edge_client.worker.generate.products import TensorKernel
from edge_client.worker.methods import client_half
from edge_client.worker.model.built import CANNOT_RUN, BuiltModel
from edge_client.worker.model.loading import build
from edge_client.worker.trace.footprint import Shape, bytes_of, outside
from edge_client.worker.trace.outline import Outline
from edge_client.worker.trace.passes import buffers_bytes, pass_bytes
from edge_client.worker.trace.shapes import Shapes, fake_model
from edge_client.worker.train.highwater import give_back_freed_memory, status_bytes
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryComponents
from fedcore.fields.types import BaseKind
from fedcore.round.training import AnyTraining
from fedcore.weights.schema import ModelSchema

__all__ = ["AnswerFootprint", "answer_footprint", "footprint_of", "working_bytes"]

_SLACK_BYTES = 10_000_000
"""What the allocator and the libraries take while an answer is given, beyond live tensors (docs/memory.md)."""
_UNTRACED_BYTES = 48 * 2**20
"""For a pass of a model that answers and cannot be run on shapes, because what it does depends on numbers: four times
what SmolLM2's takes."""
_WORD_BYTES = 620
"""Of a tokenizer, for a word that it knows: SmolLM2's keeps 30 MB for 49,152 (docs/memory.md)."""


@dataclass(frozen=True)
class AnswerFootprint:
    """A model's memory as a function of the context.

    Attributes:
        config: The model's, of transformers.
        held: What is there before an answer begins.
        passes: Tokens of a full context, and what the last pass over a question takes then; ascending.
    """

    config: Any
    held: MemoryComponents
    passes: tuple[tuple[int, int], ...]

    def components(self, tokens: int) -> MemoryComponents:
        """The peak of an answer whose context holds this many tokens when it is full.

        Args:
            tokens: Of question and answer together.
        """
        return msgspec.structs.replace(
            self.held,
            cache_bytes=cache_bytes(self.config, tokens),
            working_bytes=self._working_bytes(tokens),
            slack_bytes=self.held.slack_bytes + _SLACK_BYTES,
        )

    def fitting(self, room_bytes: int, most: int) -> int:
        """How long a context may be; 0 where not one token fits.

        Args:
            room_bytes: For the worker, in all.
            most: No longer than this.
        """
        return fitting_tokens(lambda tokens: self.components(tokens).total_bytes, room_bytes, most)

    def _working_bytes(self, tokens: int) -> int:
        """Between two traced lengths on the line through both: a peak is the largest of sums that grow with the
        length, so that it lies below."""
        below = max((one for one in self.passes if one[0] <= tokens), default=self.passes[0])
        above = min((one for one in self.passes if one[0] >= tokens), default=self.passes[-1])
        if below[0] >= above[0]:
            return above[1]
        share = (tokens - below[0]) / (above[0] - below[0])
        return below[1] + max(0, round(share * (above[1] - below[1])))


def answer_footprint(
    folder: Path,
    schema: ModelSchema,
    task: TaskSection,
    contexts: Sequence[int],
    *,
    training: AnyTraining | None = None,
    kind: BaseKind = "int8",
    shapes: Shapes | None = None,
    outline: Outline | None = None,
) -> AnswerFootprint:
    """From a model folder, of which `config.json` is enough.

    Args:
        folder: Model folder.
        schema: Its target layers.
        task: One of a model that writes.
        contexts: Lengths to trace, in tokens.
        training: A run's: what was learned in it lies beside the base. None: nothing was.
        kind: How target layers are held.
        shapes: What is known of operations, from traces before this one.
        outline: The folder's, where it is known already.
    """
    model = build(Shape(outline or Outline(folder, task), schema, kind), task, 0, torch.device("cpu"), torch.float32)
    layers = list(model.layers.values())
    weights = sum(bytes_of(list(layer.base.buffers())) for layer in layers)
    others = bytes_of(outside(model))
    config: Any = model.module.config
    shapes = shapes or Shapes()
    fake_model(model, shapes)
    learned = 0
    if training is not None:
        # Of a published state alone: no interval has begun.
        between = msgspec.structs.replace(training, intervals=0) if hasattr(training, "intervals") else training
        with shapes.at_work():
            learned = client_half(model, training).outline(between).state_bytes
        for layer in layers:
            layer.select(None)
    passes = _passes(model, shapes, contexts)
    del model, layers, shapes
    gc.collect()
    give_back_freed_memory()
    # Now, when everything that answering imports is imported.
    words = int(config.get_text_config(decoder=True).vocab_size)
    runtime = (status_bytes("VmRSS") or 0) + _WORD_BYTES * words
    held = MemoryComponents(
        runtime_bytes=runtime, weights_bytes=weights, embeddings_bytes=others, subspaces_bytes=learned
    )
    return AnswerFootprint(config, held, passes)


def footprint_of(model: BuiltModel, resident_bytes: int, room_bytes: int, most: int) -> AnswerFootprint:
    """Of a model that is loaded.

    Args:
        model: With what has been learned installed.
        resident_bytes: Of this process now.
        room_bytes: For it, in all.
        most: The longest context that may be asked for.
    """
    layers = list(model.layers.values())
    weights = sum(bytes_of(list(layer.base.buffers())) for layer in layers)
    learned = sum(bytes_of(list(layer.buffers(recurse=False))) for layer in layers)
    others = bytes_of(outside(model))
    held = MemoryComponents(
        runtime_bytes=max(0, resident_bytes - weights - learned - others),
        weights_bytes=weights,
        embeddings_bytes=others,
        subspaces_bytes=learned,
    )
    config = model.module.config
    # One pass is traced, since somebody waits: no context is longer than its cache alone would let it be, and a shorter
    # one takes less.
    longest = max(1, fitting_tokens(partial(cache_bytes, config), room_bytes - resident_bytes, most))
    try:
        taken = working_bytes(model, Shapes(), longest)
    except CANNOT_RUN:
        taken = _UNTRACED_BYTES
    return AnswerFootprint(config, held, ((longest, taken),))


def working_bytes(model: BuiltModel, shapes: Shapes, tokens: int) -> int:
    """What the last pass over a question takes beside weights and cache, when the context is full with it.

    Args:
        model: Fake, or a real one, which is as before afterwards.
        shapes: Of its tensors.
        tokens: Of the context.
    """
    peak = pass_bytes(model, shapes, tokens, min(CHUNK_TOKENS, tokens), kernel=_NoProducts())
    return buffers_bytes(model) + max(0, peak - cache_bytes(model.module.config, tokens))


def _passes(model: BuiltModel, shapes: Shapes, contexts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    # A second pass masks what the first need not: lengths of one pass and of two lie on different lines.
    lengths = {*contexts, *(tokens for tokens in (CHUNK_TOKENS, CHUNK_TOKENS + 1) if tokens < max(contexts))}
    return tuple((tokens, working_bytes(model, shapes, tokens)) for tokens in sorted(lengths))


class _NoProducts(TensorKernel):
    """Stands for products of single rows: they make nothing."""

    def __init__(self) -> None:
        self.kernel = None

    def takes(self, weight: Tensor) -> bool:
        """All."""
        return True

    def product(self, weight: Tensor, scale: Tensor | None, x: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Nothing: of shapes nothing can be computed."""
