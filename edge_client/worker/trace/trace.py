# SPDX-License-Identifier: Apache-2.0
"""What training will keep in memory, found without memory: the real model and the real training step on tensors that
are only shapes.

PyTorch's fake tensors know shape, dtype and device but hold no numbers. Every operation of a step runs on them, so that
the kernel that a processor would choose, what autograd keeps and when it lets go are all as in training; a dispatch
mode counts the bytes that are alive. No formula per architecture can drift from the code that trains."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edge_client.worker.data.tasks import Encoded, summed_loss
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import Scratch
from edge_client.worker.model.products16 import PER_TOKEN
from edge_client.worker.trace.products import Products
from edge_client.worker.trace.shapes import DEVICE, Shapes
from edge_client.worker.trace.timeline import PHASES, Event, Timeline
from fedcore.config.sections import TaskSection

__all__ = ["LiveBytes", "LossOf", "Step", "UncountedScratch", "passed", "places", "tensor_bytes"]

_FORWARD, _LOSS, _BACKWARD = range(len(PHASES))

LossOf = Callable[[BuiltModel, Sequence[Encoded], TaskSection, int, torch.device], Tensor]
"""A micro-batch's loss: model, batch, task, padding token, device."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the bytes of storages that operations inside make and let go, by the phase that made them.

    What was there before (weights) is told with `know` and counts nothing; neither does what is made in the phase None.

    Args:
        shapes: Whose fake tensors they are; its mode must be on below this one.
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase: int | None = None
        self.timeline = Timeline()
        self._shapes = shapes
        self._known: dict[int, tuple[object, int | None]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and to forbid it takes as long as an operation.
        return False

    def know(self, tensors: Iterator[Tensor] | Sequence[Tensor]) -> None:
        """These tensors' storages are not counted."""
        phase, self.phase = self.phase, None
        for tensor in tensors:
            self._track(tensor)
        self.phase = phase

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        if func is DEVICE:
            # Two of three calls: every operation asks each of its tensors.
            return self._shapes.device_of(args[0])
        out = self._shapes.run(func, args, kwargs or {})
        if isinstance(out, Tensor):
            self._track(out)
        elif isinstance(out, tuple | list):
            for tensor in out:
                if isinstance(tensor, Tensor):
                    self._track(tensor)
        return out

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size_bytes = 0 if self.phase is None else storage.nbytes()
        place = None
        if size_bytes:
            assert self.phase is not None
            place = len(self.timeline.events)
            self.timeline.events.append((self.phase, size_bytes))
            gone = partial(self._gone, key, (self.phase, -size_bytes))
        else:
            gone = partial(self._gone, key, None)
        self._known[key] = weakref.ref(storage, gone), place

    def place_of(self, tensor: Tensor) -> int | None:
        """Where in the timeline a tensor's storage was made; None where it does not count."""
        return self._known[tensor.untyped_storage()._cdata][1]

    def _gone(self, key: int, event: Event | None, _: object) -> None:
        del self._known[key]
        if event is not None:
            self.timeline.events.append(event)


class UncountedScratch(Scratch):
    """Scratch whose buffers are planned for on their own."""

    def __init__(self, counter: LiveBytes) -> None:
        super().__init__()
        self._counter = counter

    def take(self, use: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """See `Scratch`."""
        if use in PER_TOKEN:
            # As large as the micro-batch: part of what a pass keeps.
            return super().take(use, shape, dtype, device)
        phase, self._counter.phase = self._counter.phase, None
        buffer = super().take(use, shape, dtype, device)
        self._counter.phase = phase
        return buffer


@dataclass(frozen=True)
class Step:
    """A training step to trace.

    Attributes:
        task: Decides the batch.
        loss_of: The loss that trains.
        gradients_apart: Leave gradients out of the peak: they are planned for with the optimiser, since those of
            earlier micro-batches are there all the time. Where they are as large as the model, counting them as they
            come is closer.
    """

    task: TaskSection
    loss_of: LossOf = summed_loss
    gradients_apart: bool = True
    batch_size: int = 0
    """Examples in an optimiser step. A pass over fewer of them but the first finds the gradients of those before it. 0:
    as if it were the first."""
    after_bytes: int = 0
    """What an optimiser's step and the rest take after the passes."""
    tiny_length: int = 0
    """Passes over so many tokens are measured alone, each with nothing before or after it."""


def passed(
    model: BuiltModel,
    shapes: Shapes,
    batch: Sequence[Encoded],
    step: Step,
    blocks: Sequence[nn.Module],
    products: Products,
    *,
    first: bool,
) -> tuple[LiveBytes, int]:
    """One forward and backward pass of a fake model over a micro-batch: what was counted, and the bytes of gradients
    that it left.

    Buffers of `Scratch` and the optimiser's tensors are not counted.

    Args:
        model: Fake, ready to train.
        shapes: Of its tensors.
        batch: The micro-batch.
        step: What is trained.
        blocks: Whose places in the timeline are wanted.
        products: What is known of its layers' products.
        first: No gradients are there yet, of micro-batches before it.
    """
    counter = LiveBytes(shapes)
    counter.know(model.held())
    parameters = list(model.module.parameters())
    if not first:
        with shapes.mode:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        counter.know([parameter.grad for parameter in parameters if parameter.grad is not None])
    scratch = UncountedScratch(counter)
    for layer in model.layers.values():
        # One block a layer: the blocks' buffer does not count here, and a tenth of the operations says the same.
        layer.block_rows, layer.scratch = layer.out_features, scratch
    try:
        with (
            shapes.mode,
            counter,
            _phases(model, counter),
            places(blocks, counter),
            products.remembered(model.layers.values(), counter),
        ):
            loss = step.loss_of(model, batch, step.task, 0, torch.device("cpu"))
            counter.phase = _BACKWARD
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            del loss
        gradients = sum(tensor_bytes(p.grad) for p in parameters if p.grad is not None)
    finally:
        model.module.zero_grad(set_to_none=True)
    return counter, gradients


def tensor_bytes(tensor: Tensor) -> int:
    """What its numbers take."""
    return tensor.numel() * tensor.element_size()


@contextmanager
def _phases(model: BuiltModel, counter: LiveBytes) -> Iterator[None]:
    """`forward` until the model's backbone is through, then `loss`."""

    def after(*_: object) -> None:
        counter.phase = _LOSS

    counter.phase = _FORWARD
    hook = model.backbone.register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def places(blocks: Sequence[nn.Module], counter: LiveBytes) -> Iterator[None]:
    """Where in the timeline each block begins, forward and backward. Blocks that are recomputed begin once."""

    def begins(index: int, *_: object) -> None:
        if counter.phase == _FORWARD:
            counter.timeline.forward[index] = len(counter.timeline.events)

    def returns(index: int, _: object) -> None:
        counter.timeline.backward[index] = len(counter.timeline.events)

    def ends(index: int, _: object, __: object, out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple | list) else out
        if counter.phase == _FORWARD and isinstance(hidden, Tensor) and hidden.grad_fn is not None:
            counter.timeline.awaited.add(index)
            hidden.grad_fn.register_prehook(partial(returns, index))

    hooks = []
    for index, block in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(partial(begins, index)))
        hooks.append(block.register_forward_hook(partial(ends, index)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
