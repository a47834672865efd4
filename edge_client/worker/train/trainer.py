# SPDX-License-Identifier: Apache-2.0
"""A node's local training under a memory plan that may get smaller between two micro-batches, and only smaller until
the round ends.

Which plans there are, the node's planner has decided; here they are the present one and smaller ones after it. A step
down is asked for from outside (the agent's monitor) or comes from within: an allocation that fails drops the batch's
gradients and repeats the batch one step lower. Gradients are sums over micro-batches, so the batch stays what the round
asks for."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from edge_client.memory.allocator import set_thresholds
from edge_client.worker.data.tasks import Encoded, batches, in_order, summed_loss
from edge_client.worker.methods.interface import Gathering
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.fused import FusedGatedMLP
from edge_client.worker.train.channel import StepNoise, over_channel
from edge_client.worker.train.highwater import give_back_freed_memory, is_out_of_memory
from edge_client.worker.train.intervals import FinishedIntervals, round_key
from edge_client.worker.train.private import PrivateSteps, TrainedOnce, private_steps
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.round import Round, train_round, update_records
from fedcore.device.memoryplan import Allocator, MemoryPlan
from fedcore.errors import BudgetError
from fedcore.model.lanes import write_lanes
from fedcore.model.update import write_update
from fedcore.round.header import UpdateHeader
from fedcore.round.measurement import Measurement
from fedcore.round.plan import Plan

__all__ = [
    "Hooks",
    "Trainer",
    "apply",
    "can_checkpoint",
    "set_checkpointing",
    "set_recompute_gates",
]


@dataclass(frozen=True)
class Hooks:
    """How whoever has a round trained hears of it, and reaches into it.

    Attributes:
        report: Called after every step with (step from 1, steps, loss, step of the memory plan).
        wanted: Asked before every micro-batch for the lowest step of the memory plan that was asked for from outside.
        see: Told of every micro-batch before it goes through the model.
    """

    report: Callable[[int, int, float, int], None] = lambda done, steps, loss, memory_step: None
    wanted: Callable[[], int] = lambda: 0
    see: Callable[[Sequence[Encoded]], None] = lambda part: None


class Trainer:
    """Trains rounds.

    Args:
        replica: The node's model.
        encoded: The node's examples, cut to the plan's length.
        folder: For finished intervals.
        run: The run's name.
        node: This node's.
        pad_id: Token that pads.
        torch_device: Where to compute.
        hooks: Called while a round is trained.
    """

    def __init__(
        self,
        replica: Replica,
        encoded: Sequence[Encoded],
        folder: Path,
        run: str,
        node: str,
        pad_id: int,
        torch_device: torch.device,
        hooks: Hooks = Hooks(),
    ) -> None:
        self._replica, self._encoded, self._folder = replica, encoded, folder
        self._run, self._node, self._pad_id, self._torch_device = run, node, pad_id, torch_device
        self._report, self._wanted, self._see = hooks.report, hooks.wanted, hooks.see
        self._memory_steps: Sequence[MemoryPlan] = ()
        self._private: PrivateSteps | None = None
        self._noise: StepNoise | None = None
        self._length = 0
        self.memory_step = 0

    def train(
        self, plan: Plan, memory_steps: Sequence[MemoryPlan], path: Path, measured: Measurement | None = None
    ) -> tuple[UpdateHeader, Round]:
        """Train a round and write its update to `path`, as lanes where it is to be masked; afterwards the replica is
        back at the published state.

        Args:
            plan: The round.
            memory_steps: The memory plan to begin with and smaller ones, in order.
            path: The update's file.
            measured: What was measured of the state that the round starts from, for the update to carry.

        Raises:
            BudgetError: An allocation failed on the lowest step.
            WorkerError: The loss is not finite, or the round was trained before where that would tell too much.
            DataError: There are too few examples for what the job promises of privacy.
        """
        started = time.monotonic()
        self._memory_steps, self.memory_step, self._length = memory_steps, -1, plan.task.max_length
        self._replica.become(self._run, self._node)
        self._replica.open(plan)
        self._descend(0)
        once = TrainedOnce(self._folder.parent, self._run, plan.run_id, self._node)
        half = self._replica.half
        rows = half.taken(self._encoded, plan, self._node) if isinstance(half, Gathering) else self._encoded
        self._private = private_steps(self._replica.model, half, plan, len(rows))
        hides = plan.training.privacy is not None and plan.training.privacy.level == "example"
        if hides:
            once.require(plan.round)
        stream = _Numbered(self._stream(plan, rows))
        computes = f"{self._replica.compute_dtype} on {self._torch_device.type}"
        key = round_key(plan, self._run, self._node, len(rows), memory_steps[0].length, computes)
        finished = FinishedIntervals(self._folder, key)
        with over_channel(self._replica.model, plan, self._node) as self._noise:
            trained = train_round(
                self._replica,
                plan,
                self._node,
                memory_steps[0].rank or plan.training.rank,
                lambda number: self._whole_batch(stream.batch(number), number, plan),
                lambda done, steps, loss: self._report(done, steps, loss, self.memory_step),
                finished,
                len(rows),
            )
        header = UpdateHeader(
            run=self._run,
            run_id=plan.run_id,
            round=plan.round,
            node=self._node,
            version=plan.version,
            examples=sum(row.examples for row in rows),
            rank=self._replica.half.rank,
            subspaces=self._replica.half.subspaces,
            loss=trained.loss,
            seconds=time.monotonic() - started,
            measured=measured,
        )
        if hides:
            once.begin(plan.round)
        plain = path if plan.secure is None else path.with_suffix(".plain")
        write_update(plain, header, update_records(self._replica, plan))
        if plan.secure is not None:
            write_lanes(plain, plan, self._run, self._node, path)
            plain.unlink()
        self._replica.keep_local(plan.round)
        finished.clear()
        # Back to the published state: what this node alone learned is in its update.
        self._replica.restore()
        return header, trained

    def _stream(self, plan: Plan, rows: Sequence[Encoded]) -> Iterator[list[Encoded]]:
        size = plan.training.batch_size
        if self._private is not None:
            return self._private.batches(rows)
        if plan.training.one_pass:
            return in_order(rows, size)
        return batches(rows, size, plan.training.run_seed, plan.round, self._node)

    def _whole_batch(self, batch: Sequence[Encoded], number: int, plan: Plan) -> float:
        """Forward and backward of a batch, in micro-batches; repeated on a lower step if memory runs out."""
        while True:
            try:
                return self._micro_batches(batch, number, plan)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            # Outside of the handler: its traceback kept the failed step's tensors alive.
            self._drop_gradients()
            if self.memory_step + 1 >= len(self._memory_steps):
                raise BudgetError(
                    f"out of memory with the smallest plan: {problem}", place="memory_budget", remedy="raise it"
                )
            self._descend(self.memory_step + 1)

    def _micro_batches(self, batch: Sequence[Encoded], number: int, plan: Plan) -> float:
        half, weight, loss, start = self._replica.half, sum(e.weight for e in batch), 0.0, 0
        private = self._private
        if private is not None:
            private.begin()
        while start < len(batch):
            if self._wanted() > self.memory_step:
                self._descend(min(self._wanted(), len(self._memory_steps) - 1))
            size = self._memory_steps[self.memory_step].micro_batch_size
            part = batch[start : start + size]
            self._see(part)
            if self._noise is not None:
                self._noise.see(number, start, part)
            if isinstance(half, Gathering):
                loss += half.gather(part, plan.task, self._pad_id, self._torch_device, first=start == 0)
            elif private is not None:
                private.micro_batch(part, self._pad_id, self._torch_device)
            else:
                loss += self._micro_batch(part, plan, weight)
            start += size
        return loss / weight if private is None else private.finish()

    def _micro_batch(self, part: Sequence[Encoded], plan: Plan, weight: int) -> float:
        """Forward and backward; the summed loss."""
        loss = summed_loss(self._replica.model, part, plan.task, self._pad_id, self._torch_device)
        if loss.requires_grad:
            # Not where nothing is trained by gradients: then there is no graph, and no memory for one.
            (loss / weight).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _descend(self, memory_step: int) -> None:
        if memory_step != self.memory_step:
            self.memory_step, memory = memory_step, self._memory_steps[memory_step]
            apply(self._replica.model, memory)
            self._replica.model.padding.room_tokens = memory.micro_batch_size * (memory.length or self._length)

    def _drop_gradients(self) -> None:
        for parameter in self._replica.model.module.parameters():
            parameter.grad = None
        gc.collect()
        if self._torch_device.type == "cuda":
            torch.cuda.empty_cache()


class _Numbered:
    """Batches by their number, as finished intervals and repeated steps ask for them; numbers never fall."""

    def __init__(self, stream: Iterator[list[Encoded]]) -> None:
        self._stream, self._number = stream, -1
        self._batch: list[Encoded] = []

    def batch(self, number: int) -> list[Encoded]:
        while self._number < number:
            self._batch = next(self._stream)
            self._number += 1
        return self._batch


def apply(model: BuiltModel, memory: MemoryPlan) -> None:
    """Make a model train as a memory plan says, from the next micro-batch on."""
    set_checkpointing(model.module, memory.checkpointing)
    set_recompute_gates(model.module, memory.recompute_gates and not memory.checkpointing)
    for layer in model.layers.values():
        layer.block_rows = memory.block_rows
        layer.dequantised.switch(memory.dequantised)
        if layer.scratch is not None:
            layer.scratch.clear()
    _set_allocator(memory.allocator)


def set_checkpointing(model: nn.Module, on: bool) -> None:
    """Switch the recomputing of each block's activations; cheap to repeat.

    Not by the model's public method: that one also makes the embeddings' output require a gradient, for good.
    """
    # Dropout is off: there is no random state to keep.
    recompute = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    switch: Callable[..., None] = model._set_gradient_checkpointing  # type: ignore[assignment]
    if can_checkpoint(model):
        switch(enable=on, gradient_checkpointing_func=recompute)


def can_checkpoint(model: nn.Module) -> bool:
    """Whether a model of transformers has blocks that can be recomputed; ALBERT and MPNet have none."""
    return any(hasattr(module, "gradient_checkpointing") for module in model.modules())


def set_recompute_gates(model: nn.Module, on: bool) -> bool:
    """Switch the recomputing of gated MLPs' gates; whether the model has any."""
    found = [module for module in model.modules() if isinstance(module, FusedGatedMLP)]
    for module in found:
        module.recompute_gate = on
    return bool(found)


def _set_allocator(allocator: Allocator) -> None:
    """Keep freed memory, or give it back from now on (glibc only).

    A process is started with the thresholds of `tuned`. Going back to them later helps less: what lies free inside the
    heap by then is used again before the system is asked."""
    set_thresholds(allocator)
    if allocator == "tuned":
        give_back_freed_memory()
