# SPDX-License-Identifier: Apache-2.0
"""A node's memory plans through its life: for loading, for each round, and one step lower after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_client.memory.answering import answers_at_once
from edge_client.memory.limits import Limit
from edge_client.memory.planner import Bounds, Calibration, allocator_share, calibrated, described, fit, plan_steps
from edge_client.node import Node
from fedcore.device.memoryplan import Allocator, Footprint, MemoryComponents, MemoryPlan
from fedcore.errors import BudgetError, WorkerError
from fedcore.round.plan import Plan
from fedcore.worker.messages import Measured

__all__ = ["Planning"]

_ALLOCATORS: dict[str, Allocator | None] = {"auto": None, "tuned": "tuned", "default": "default"}


class Planning:
    """Plans for one worker after the other.

    Args:
        node: The owner's choices.
        folder: Where calibration is remembered.
    """

    def __init__(self, node: Node, folder: Path) -> None:
        self._node, self._file = node, folder / "calibration.json"
        self._footprint: Footprint | None = None
        self._calibration = Calibration()
        self._plan: Plan | None = None
        self._first_memory_step = 0
        self._round = 0
        self.loaded: MemoryPlan | None = None
        """How the present worker was told to load; None until it was."""
        self.memory_steps: tuple[MemoryPlan, ...] = ()
        """The present round's plans."""

    def forget(self) -> None:
        """A new worker begins."""
        self.loaded, self.memory_steps = None, ()

    def load(self, footprint: Footprint, plan: Plan, budget_room: int, now: Limit) -> tuple[MemoryPlan, bool]:
        """How to load, and whether this process still has to be calibrated.

        Args:
            footprint: Of the model.
            plan: The round.
            budget_room: The worker's share of the budget, in bytes.
            now: What the worker may have now, that share or less.

        Raises:
            BudgetError: Nothing fits the budget; the message has the numbers.
            WorkerError: Something would, but the device has too little memory left now.
        """
        self._footprint, self._plan = footprint, plan
        known = self._known_calibration()
        self._calibration = known or self._calibration
        bounds = self._bounds(plan)
        fit(footprint, bounds, budget_room, self._calibration)
        self.loaded = self._fit(bounds, now)
        return self.loaded, known is None

    def measured(self, steps: Sequence[Measured]) -> None:
        """Tiny steps of the present worker."""
        if not steps:
            return
        assert self._footprint is not None and self._plan is not None and self.loaded is not None
        rank = self._plan.training.rank
        self._calibration = calibrated(self._footprint, self.loaded, steps, rank=rank, before=self._calibration)
        self._file.write_bytes(msgspec.json.encode((self._footprint.key, self._calibration)))

    def begin(self, plan: Plan, now: Limit) -> tuple[MemoryPlan, ...]:
        """A round's memory plans, the best that fits first, then smaller ones; after kills in this round it begins
        lower.

        Raises:
            WorkerError: Nothing fits now, or the worker was killed on every step.
        """
        assert self._footprint is not None and self.loaded is not None
        if plan.round != self._round:
            self._round, self._first_memory_step = plan.round, 0
        self._plan = plan
        bounds = self._bounds(plan)
        whole = plan_steps(self._footprint, bounds, self._fit(bounds, now), self._calibration)
        if self._first_memory_step >= len(whole):
            raise WorkerError("the worker was killed on every plan", place="memory_budget", remedy="raise it")
        self.memory_steps = whole[self._first_memory_step :]
        return self.memory_steps

    def measure(self, plan: Plan, now: Limit) -> tuple[MemoryPlan, int]:
        """The plan to measure a round's start by, and how many answers side by side it may make.

        Raises:
            WorkerError: As `begin`.
        """
        memory = self.begin(plan, now)[0]
        assert self._footprint is not None
        share = allocator_share(memory, self._calibration)
        return memory, answers_at_once(self._footprint, memory, share, now.size_bytes)

    def killed(self, memory_step: int) -> None:
        """The worker was killed for its memory on this step: the next try begins below it."""
        self._first_memory_step += memory_step + 1

    def memory_step_for(self, room_bytes: int) -> int:
        """The first step that fits, or the last one; 0 where no round has begun."""
        fitting = [i for i, plan in enumerate(self.memory_steps) if plan.components.total_bytes <= room_bytes]
        return fitting[0] if fitting else max(0, len(self.memory_steps) - 1)

    def words(self, memory_step: int) -> str:
        """A step in words."""
        assert self._plan is not None
        return described(self.memory_steps[memory_step], self._bounds(self._plan))

    def components(self, memory_step: int) -> MemoryComponents | None:
        """The foreseen components on a step of the present round, or as loaded."""
        if self.memory_steps:
            return self.memory_steps[min(memory_step, len(self.memory_steps) - 1)].components
        return self.loaded.components if self.loaded is not None else None

    def _bounds(self, plan: Plan) -> Bounds:
        node, training, loaded = self._node, plan.training, self.loaded
        return Bounds(
            batch_size=training.batch_size,
            rank=training.rank,
            min_rank=training.min_rank,
            min_length=plan.task.min_length,
            micro_batch_size=node.micro_batch_size or None,
            checkpointing=node.checkpointing,
            # What is loaded is loaded: a length or a place of weights does not change between rounds.
            mapped=loaded.mapped if loaded is not None else node.mapped_weights,
            dequantised=node.dequantised_weights,
            fixed_length=loaded.length if loaded is not None else None,
            allocator=_ALLOCATORS[node.allocator],
        )

    def _fit(self, bounds: Bounds, now: Limit) -> MemoryPlan:
        assert self._footprint is not None
        try:
            return fit(self._footprint, bounds, now.size_bytes, self._calibration)
        except BudgetError as error:
            raise WorkerError(f"{error.message} ({now.source})", place=error.place) from None

    def _known_calibration(self) -> Calibration | None:
        """What was measured on this device for this model, round's shape and library versions, if it was."""
        assert self._footprint is not None
        try:
            key, found = msgspec.json.decode(self._file.read_bytes(), type=tuple[str, Calibration])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return found if key == self._footprint.key else None
