# SPDX-License-Identifier: Apache-2.0
"""What training will keep in memory, found without memory: the real model and the real training step on tensors that
are only shapes.

PyTorch's fake tensors know shape, dtype and device but hold no numbers. Every operation of a step runs on them, so that
the kernel that a processor would choose, what autograd keeps and when it lets go are all as in training; a dispatch
mode counts the bytes that are alive. No formula per architecture can drift from the code that trains."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from edge_client.worker.data.tasks import Encoded, summed_loss, worker_task
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import Scratch
from edge_client.worker.model.products16 import PER_TOKEN
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import Point

__all__ = [
    "LiveBytes",
    "LossOf",
    "Peak",
    "Step",
    "UncountedScratch",
    "fake_model",
    "point",
    "sketch_points",
    "trace_step",
]


LossOf = Callable[[BuiltModel, Sequence[Encoded], TaskSection, int, torch.device], Tensor]
"""A micro-batch's loss: model, batch, task, padding token, device."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that operations inside make, by the phase that made them, and remembers the peak.

    What was there before (weights) is told with `know` and counts nothing; neither does what is made in the phase "".
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = ""
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._known: dict[int, tuple[str, int]] = {}

    def know(self, tensors: Iterator[Tensor] | Sequence[Tensor]) -> None:
        """These tensors' storages are not counted."""
        for tensor in tensors:
            self._track(tensor, counted=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._track(tensor, counted=True)
        return out

    def _track(self, tensor: Tensor, *, counted: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size_bytes = storage.nbytes() if counted and self.phase else 0
        self._known[key] = self.phase, size_bytes
        weakref.finalize(storage, self._gone, key)
        self.live[self.phase] += size_bytes
        if self.live.total() > self.peak.total():
            self.peak = self.live.copy()

    def _gone(self, key: int) -> None:
        phase, size_bytes = self._known.pop(key)
        self.live[phase] -= size_bytes


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
        phase, self._counter.phase = self._counter.phase, ""
        buffer = super().take(use, shape, dtype, device)
        self._counter.phase = phase
        return buffer


@dataclass(frozen=True)
class Peak:
    """Live bytes at the peak of a step, by the phase that made them."""

    forward_bytes: int
    loss_bytes: int
    backward_bytes: int

    @property
    def total_bytes(self) -> int:
        """Live bytes of all phases together: the peak."""
        return self.forward_bytes + self.loss_bytes + self.backward_bytes


def fake_model(model: BuiltModel) -> FakeTensorMode:
    """Turn a model's parameters and buffers into fake tensors in place; tied ones stay tied.

    Returns:
        The mode under which the model runs.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}
    # The originals live until the end: a freed tensor's id could come again.
    originals: list[Tensor] = []

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            originals.append(tensor)
            shape_only = mode.from_tensor(tensor.detach())
            made[id(tensor)] = (
                nn.Parameter(shape_only, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape_only
            )
        return made[id(tensor)]

    for module in model.parts():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = fake(tensor)  # type: ignore[assignment]
    return mode


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


def trace_step(
    model: BuiltModel, mode: FakeTensorMode, batch: Sequence[Encoded], step: Step, *, first: bool = True
) -> Peak:
    """One forward and backward pass of a fake model over a micro-batch; returns its peak.

    Buffers of `Scratch` and the optimiser's tensors are not in it.

    Args:
        model: Fake, ready to train.
        mode: Its mode.
        batch: The micro-batch.
        step: What is trained.
        first: No gradients are there yet, of micro-batches before it.
    """
    counter = LiveBytes()
    counter.know(model.held())
    parameters = list(model.module.parameters())
    if not first:
        with mode:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        counter.know([parameter.grad for parameter in parameters if parameter.grad is not None])
    scratch = UncountedScratch(counter)
    for layer in model.layers.values():
        # One block a layer: the blocks' buffer does not count here, and a tenth of the operations says the same.
        layer.block_rows, layer.scratch = layer.out_features, scratch
    with mode, counter, _phases(model, counter):
        loss = step.loss_of(model, batch, step.task, 0, torch.device("cpu"))
        counter.phase = "backward"
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        del loss
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
    model.module.zero_grad(set_to_none=True)
    return _without(counter.peak, gradients if first and step.gradients_apart else 0, step.after_bytes)


def _without(peak: Mapping[str, int], gradients: int, after_bytes: int) -> Peak:
    """A peak beyond gradients that are planned for elsewhere: those that came after it leave less for the phases
    before."""
    backward = peak["backward"] - gradients
    loss = peak["loss"] + min(0, backward)
    forward = max(0, peak["forward"] + min(0, loss))
    found = Peak(forward, max(0, loss), max(0, backward))
    return Peak(forward, found.loss_bytes, found.backward_bytes + max(0, after_bytes - found.total_bytes))


@contextmanager
def _phases(model: BuiltModel, counter: LiveBytes) -> Iterator[None]:
    """`forward` until the model's backbone is through, then `loss`."""

    def after(*_: object) -> None:
        counter.phase = "loss"

    counter.phase = "forward"
    hook = model.backbone.register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


def point(
    model: BuiltModel, mode: FakeTensorMode, step: Step, *, micro_batch_size: int, length: int, checkpointing: bool
) -> Point:
    """The peak of a pass over `micro_batch_size` examples of `length` tokens each."""
    types = (0,) * length if model.takes_types else None
    example = worker_task(step.task).sample((1,) * length, types)
    first = step.batch_size in (0, micro_batch_size)
    if length == step.tiny_length:
        step, first = replace(step, after_bytes=0), True
    peak = trace_step(model, mode, [example] * micro_batch_size, step, first=first)
    return Point(
        checkpointing=checkpointing,
        micro_batch_size=micro_batch_size,
        length=length,
        activations_bytes=peak.forward_bytes,
        logits_bytes=peak.loss_bytes,
        working_bytes=peak.backward_bytes,
    )


def sketch_points(
    model: BuiltModel,
    mode: FakeTensorMode,
    step: Step,
    shapes: Sequence[tuple[int, int]],
    recompute: Callable[[nn.Module, bool, bool], bool],
) -> tuple[Point, ...]:
    """A point for each shape and each way of recomputing.

    Args:
        model: Fake, ready to train.
        mode: Its mode.
        step: What is trained.
        shapes: Examples and tokens of each.
        recompute: Called with (module, checkpointing, gates) to switch; False where the model cannot.
    """
    found = []
    for checkpointing, gates in ((False, False), (False, True), (True, False)):
        if not recompute(model.module, checkpointing, gates):
            continue
        for size, length in shapes:
            one = point(model, mode, step, micro_batch_size=size, length=length, checkpointing=checkpointing)
            found.append(msgspec.structs.replace(one, recompute_gates=gates))
    recompute(model.module, False, False)
    return tuple(found)
