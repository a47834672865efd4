# SPDX-License-Identifier: Apache-2.0
"""The largest pass of an answer, traced: the one over the last tokens of a question, when the cache is full with it.

One function for the worker that serves (`contexts`) and for the one that measures a published state by answers
(`answers`). Of blocks that are alike a few are run and the others continued, as in a training step (`timeline`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from edge_client.worker.generate.engine import Engine
from edge_client.worker.generate.products import TensorKernel
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.trace.blocks import Repetition, repetition, shortened
from edge_client.worker.trace.shapes import Shapes
from edge_client.worker.trace.timeline import Timeline
from edge_client.worker.trace.trace import LiveBytes, UncountedScratch, places

__all__ = ["buffers_bytes", "pass_bytes"]


def pass_bytes(
    model: BuiltModel,
    shapes: Shapes,
    context: int,
    last: int,
    *,
    rows: int = 1,
    padded: bool = False,
    kernel: TensorKernel | None = None,
    whole: bool = False,
) -> int:
    """The peak of the last pass over a question that fills its context, cache included, beside weights and the layers'
    buffers (`buffers_bytes`).

    Args:
        model: Fake, or a real one, which is as before afterwards.
        shapes: Of its tensors.
        context: Tokens of question and answer, all of them in the cache at the end.
        last: Tokens of the last pass; what comes before goes through in one.
        rows: Answers side by side.
        padded: With a mask and positions, as answers side by side have them.
        kernel: Products of single rows, or None for those of PyTorch.
        whole: Run all blocks, also where a few show the rest: what a test compares with.
    """
    lengths = [context - last, last] if context > last else [context]
    traced = partial(_traced, model, shapes, context, lengths, rows, padded, kernel)
    found = None if whole else repetition(model)
    passes = None if found is None else _continued(traced, found)
    return _peak(traced(()) if passes is None else passes)


def buffers_bytes(model: BuiltModel) -> int:
    """What layers write blocks of weights, side factors and signs to, which `pass_bytes` leaves out: all layers use the
    same."""
    layers = list(model.layers.values())
    learned = [(layer, layer.projection) for layer in layers if layer.projection is not None]
    blocks = max((_block_rows(layer) * layer.in_features for layer in layers), default=0)
    sides = max((_block_rows(layer) * projection.shape[0] for layer, projection in learned), default=0)
    signs = max((projection.numel() for _, projection in learned), default=0)
    return torch.float32.itemsize * (blocks + sides + signs)


def _block_rows(layer: SubspaceLinear) -> int:
    return min(layer.block_rows, layer.out_features)


def _traced(
    model: BuiltModel,
    shapes: Shapes,
    context: int,
    lengths: Sequence[int],
    rows: int,
    padded: bool,
    kernel: TensorKernel | None,
    blocks: Sequence[nn.Module],
) -> list[Timeline]:
    """A timeline a pass."""
    engine, counter = Engine(model, kernel, context), LiveBytes(shapes)
    # Kept to the end: what is not, is made again by the next who asks, and counted.
    held = [tensor if isinstance(tensor, FakeTensor) else shapes.mode.from_tensor(tensor) for tensor in model.held()]
    counter.know(held)
    cache, found, before = engine.cache_for(context), [], 0
    with engine.at_work(), _uncounted(model, counter), torch.no_grad(), shapes.mode, counter, places(blocks, counter):
        counter.phase = 0
        for tokens in lengths:
            counter.timeline = Timeline()
            inputs = {"input_ids": torch.zeros(rows, tokens, dtype=torch.int64)}
            if padded:
                mask = torch.ones(rows, before + tokens, dtype=torch.int64)
                inputs |= {"attention_mask": mask, "position_ids": mask.cumsum(1)[:, before:] - 1}
                del mask
            engine.forward(**inputs, past_key_values=cache)
            del inputs
            found.append(Timeline(list(counter.timeline.events), dict(counter.timeline.forward)))
            before += tokens
        del cache, held
    return found


def _continued(traced: Callable[[Sequence[nn.Module]], list[Timeline]], found: Repetition) -> list[Timeline] | None:
    """As if all blocks had been run; None where those that were do not show it."""
    try:
        with shortened(found, found.kept) as blocks:
            passes = traced(blocks)
    except (IndexError, KeyError, ValueError):
        # It counts on all of its blocks.
        return None
    copies = found.copies(found.kept)
    longer = [one.continued(lead=found.lead, period=found.period, copies=copies) for one in passes]
    return None if any(one is None for one in longer) else [one for one in longer if one is not None]


def _peak(passes: Sequence[Timeline]) -> int:
    """Of the last pass, over what those before it left."""
    *before, last = ([size_bytes for _, size_bytes in one.events] for one in passes)
    return max(accumulate(last, initial=sum(map(sum, before))))


@contextmanager
def _uncounted(model: BuiltModel, counter: LiveBytes) -> Iterator[None]:
    """Inside, layers write their blocks to buffers that are not counted and do not stay, each layer in one, which says
    the same in fewer operations."""
    scratch, layers = UncountedScratch(counter), list(model.layers.values())
    kept = [(layer.scratch, layer.block_rows) for layer in layers]
    for layer in layers:
        layer.scratch, layer.block_rows = scratch, layer.out_features
    try:
        yield
    finally:
        for layer, own in zip(layers, kept, strict=True):
            layer.scratch, layer.block_rows = own
