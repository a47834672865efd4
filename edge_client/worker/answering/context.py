# SPDX-License-Identifier: Apache-2.0
"""How long a conversation may be: what the model has positions for, what its owner allows, what there is memory for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fedcore.errors import BudgetError
from fedcore.worker.serving import Load

__all__ = ["fitting_context"]

_LEAST_CONTEXT: Final = 128


def fitting_context(load: Load, positions: int, held_bytes: int | None, fitting: Callable[[int, int, int], int]) -> int:
    """Tokens of question and answer together.

    Args:
        load: With what the owner allows, and the room for the worker in all.
        positions: What the model has positions for.
        held_bytes: What is there before an answer begins; None or 0 where the system does not say.
        fitting: (held bytes, room bytes, most) to the tokens that fit.

    Raises:
        BudgetError: Next to none fit.
    """
    most = min(positions, load.max_context or positions)
    if not load.room_bytes or not held_bytes:
        return most
    fits = fitting(held_bytes, load.room_bytes, most)
    if fits < min(most, _LEAST_CONTEXT):
        raise BudgetError(
            f"the model takes {held_bytes / 2**20:,.0f} MiB of {load.room_bytes / 2**20:,.0f} MiB,"
            f" which leaves room for a context of {fits} tokens",
            place="memory_budget",
            remedy="raise it",
        )
    return fits
