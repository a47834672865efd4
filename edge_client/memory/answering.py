# SPDX-License-Identifier: Apache-2.0
"""What a worker needs while a published state is measured by answers, beside what it needs to train. Pure functions.

While it measures, nothing trains: the room of a training pass is the answers' then, and what is left of the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedcore.device.memoryplan import Footprint, MemoryPlan
from fedcore.errors import BudgetError

__all__ = ["MARGIN", "answers_at_once", "measuring_bytes", "no_answer_fits"]

# Predictions are within a few percent (docs/benchmarks.md); a plan must leave this share of the room unused.
MARGIN: Final = 0.04


def measuring_bytes(footprint: Footprint, plan: MemoryPlan, share: float, at_once: int = 1) -> int:
    """The worker's peak with so many answers side by side; 0 where nothing is measured by answers.

    Args:
        footprint: Of the model.
        plan: With its components, of training.
        share: Of what comes and goes, what the allocator takes beyond it.
        at_once: How many answers.
    """
    if footprint.answering is None:
        return 0
    parts = plan.components
    passing = parts.activations_bytes + parts.logits_bytes + parts.working_bytes
    answers = footprint.answering.needed_bytes(at_once)
    return parts.total_bytes - passing - int(share * passing) + answers + int(share * answers)


def answers_at_once(footprint: Footprint, plan: MemoryPlan, share: float, room_bytes: int) -> int:
    """How many answers side by side fit a room; one at least, which planning has seen to.

    Args:
        footprint: Of the model.
        plan: Of the worker.
        share: As of `measuring_bytes`.
        room_bytes: For the worker alone.
    """
    if footprint.answering is None:
        return 1
    one, two = (measuring_bytes(footprint, plan, share, at_once) for at_once in (1, 2))
    return max(1, 1 + int(room_bytes * (1 - MARGIN) - one) // max(1, two - one))


def no_answer_fits(peaks: Sequence[int], room_bytes: int) -> BudgetError:
    """Training would fit a room, and measuring by answers does not.

    Args:
        peaks: With one answer, of every plan.
        room_bytes: For the worker alone.
    """
    needed = min(peaks) / (1 - MARGIN)
    return BudgetError(
        f"training fits, but measuring by answers needs {needed / 1e6:,.0f} MB for one alone; "
        f"the worker may have {room_bytes / 1e6:,.0f} MB",
        place="memory_budget",
        remedy=f"raise memory_budget by {(needed - room_bytes) / 1e6:,.0f} MB, or lower evaluation.max_new_tokens",
    )
