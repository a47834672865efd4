# SPDX-License-Identifier: Apache-2.0
"""A footprint's points: the peak of a pass for each micro-batch, length and way of recomputing, traced through as few
blocks as show the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

from torch import nn

from edge_client.worker.data.tasks import Encoded, worker_task
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.trace.blocks import Repetition, repetition, shortened
from edge_client.worker.trace.outline import Outline
from edge_client.worker.trace.products import Products
from edge_client.worker.trace.shapes import Shapes
from edge_client.worker.trace.timeline import Peak
from edge_client.worker.trace.trace import Step, passed, tensor_bytes
from fedcore.device.memoryplan import Point

__all__ = ["Progress", "Recompute", "Traces", "Tracing", "no_progress", "trace_step"]

Progress = Callable[[int, int], None]
"""Told how many passes are traced, of how many at most."""
Recompute = Callable[[nn.Module, bool, bool], bool]
"""Called with (module, checkpointing, gates) to switch; False where the model cannot."""


def no_progress(done: int, of: int) -> None:
    """Nobody waits."""


_WAYS = ((False, False), (False, True), (True, False))
"""Of recomputing: checkpointing, and gates."""


class _Later:
    """A point whose bytes are traced when they are asked for, once."""

    def __init__(
        self,
        traced: Callable[[tuple[bool, bool], tuple[int, int]], Peak],
        way: tuple[bool, bool],
        shape: tuple[int, int],
    ) -> None:
        self._traced, self._way, self._shape = traced, way, shape
        self.checkpointing, self.recompute_gates = way
        self.micro_batch_size, self.length = shape

    @cached_property
    def peak(self) -> Peak:
        return self._traced(self._way, self._shape)

    @property
    def activations_bytes(self) -> int:
        return self.peak.forward_bytes

    @property
    def logits_bytes(self) -> int:
        return self.peak.loss_bytes

    @property
    def working_bytes(self) -> int:
        return self.peak.backward_bytes

    @property
    def point(self) -> Point:
        return Point(
            checkpointing=self.checkpointing,
            recompute_gates=self.recompute_gates,
            micro_batch_size=self.micro_batch_size,
            length=self.length,
            activations_bytes=self.activations_bytes,
            logits_bytes=self.logits_bytes,
            working_bytes=self.working_bytes,
        )


def trace_step(model: BuiltModel, shapes: Shapes, batch: Sequence[Encoded], step: Step, *, first: bool = True) -> Peak:
    """One forward and backward pass of a fake model over a micro-batch, through all of its blocks; returns its peak.

    Buffers of `Scratch` and the optimiser's tensors are not in it.

    Args:
        model: Fake, ready to train.
        shapes: Of its tensors.
        batch: The micro-batch.
        step: What is trained.
        first: No gradients are there yet, of micro-batches before it.
    """
    counter, gradients_bytes = passed(model, shapes, batch, step, (), Products(), first=first)
    return _without(counter.timeline.peak(), gradients_bytes if first and step.gradients_apart else 0, step.after_bytes)


def _continued_step(
    model: BuiltModel,
    shapes: Shapes,
    batch: Sequence[Encoded],
    step: Step,
    blocks: Sequence[nn.Module],
    found: Repetition,
    products: Products,
    *,
    first: bool,
) -> Peak | None:
    """The same of a model of which `shortened` left some blocks; None where its blocks do not repeat after all."""
    try:
        counter, gradients_bytes = passed(model, shapes, batch, step, blocks, products, first=first)
    except (IndexError, KeyError, ValueError):
        # It counts on all of its blocks.
        return None
    kept = len(blocks)
    whole = counter.timeline.continued(
        lead=found.lead, period=found.period, copies=found.copies(kept), seen=kept < found.kept
    )
    if whole is None:
        return None
    gradients_bytes += found.copies(kept) * sum(
        tensor_bytes(p) for block in found.pattern for p in block.parameters() if p.requires_grad
    )
    return _without(whole.peak(), gradients_bytes if first and step.gradients_apart else 0, step.after_bytes)


def _without(peak: Peak, gradients: int, after_bytes: int) -> Peak:
    """A peak beyond gradients that are planned for elsewhere: those that came after it leave less for the phases
    before."""
    backward = peak.backward_bytes - gradients
    loss = peak.loss_bytes + min(0, backward)
    forward = max(0, peak.forward_bytes + min(0, loss))
    found = Peak(forward, max(0, loss), max(0, backward))
    return Peak(forward, found.loss_bytes, found.backward_bytes + max(0, after_bytes - found.total_bytes))


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """How a trace goes about it.

    Attributes:
        shapes: What is known of operations, from traces before this one too.
        progress: Called with how many passes are traced, of how many.
        whole: Trace all blocks, also where a few show the rest: what a test compares with.
        when_asked: Trace a point when its bytes are asked for, beside the first one: who only looks for a plan needs
            few of them.
        outline: The folder's, where it is known already.
    """

    shapes: Shapes = field(default_factory=Shapes)
    progress: Progress = no_progress
    whole: bool = False
    when_asked: bool = False
    outline: Outline | None = None


class Traces:
    """Points of one fake model, each from as few of its blocks as show the rest.

    Args:
        model: Fake, ready to train.
        shapes: Of its tensors.
        step: What is trained.
        whole: Trace all blocks: what a test compares with.
    """

    def __init__(self, model: BuiltModel, shapes: Shapes, step: Step, *, whole: bool = False) -> None:
        self._model, self._shapes, self._step = model, shapes, step
        self._found = None if whole else repetition(model)
        self._seen, self._products = set[tuple[bool, bool]](), Products()

    @property
    def blocks(self) -> int | None:
        """How many blocks are traced; None for all."""
        return None if self._found is None else self._found.kept

    def points(
        self,
        shapes: Sequence[tuple[int, int]],
        recompute: Recompute,
        progress: Progress = no_progress,
        *,
        when_asked: bool = False,
    ) -> tuple[Point, ...]:
        """A point for each shape and each way of recomputing.

        Args:
            shapes: Examples and tokens of each.
            recompute: Switches between ways.
            progress: Called with how many are done, of how many at most.
            when_asked: Leave all but the first of the largest shape to be traced when their bytes are asked for; the
                model is kept until then.
        """
        ways = [way for way in _WAYS if recompute(self._model.module, *way)]
        recompute(self._model.module, False, False)
        count, traced = len(ways) * len(shapes), list[tuple[int, int]]()

        def peak(way: tuple[bool, bool], shape: tuple[int, int]) -> Peak:
            recompute(self._model.module, *way)
            found = self._peak(way, *shape)
            recompute(self._model.module, False, False)
            traced.append(shape)
            progress(len(traced), count)
            return found

        later = [_Later(peak, way, shape) for way in ways for shape in shapes]
        if when_asked:
            _ = max(later[: len(shapes)], key=lambda point: point.micro_batch_size * point.length).peak
            return cast("tuple[Point, ...]", tuple(later))
        return tuple(point.point for point in later)

    def _peak(self, way: tuple[bool, bool], micro_batch_size: int, length: int) -> Peak:
        """The peak of a pass over `micro_batch_size` examples of `length` tokens each."""
        model, step = self._model, self._step
        types = (0,) * length if model.takes_types else None
        batch = [worker_task(step.task).sample((1,) * length, types)] * micro_batch_size
        first = step.batch_size in (0, micro_batch_size)
        if length == step.tiny_length:
            step, first = replace(step, after_bytes=0), True
        if self._found is not None:
            # Whether blocks repeat shows in the first pass of each way; the others need a period less.
            with shortened(self._found, self._found.fewest if way in self._seen else self._found.kept) as blocks:
                peak = _continued_step(
                    model, self._shapes, batch, step, blocks, self._found, self._products, first=first
                )
            if peak is not None:
                self._seen.add(way)
                return peak
            self._found = None
        return trace_step(model, self._shapes, batch, step, first=first)
