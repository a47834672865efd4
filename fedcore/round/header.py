# SPDX-License-Identifier: Apache-2.0
"""What an update says about itself, and what each of its records must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from fedcore.fields.checked import Number
from fedcore.fields.formats import UPDATE
from fedcore.numbers.coding import Coding
from fedcore.round.measurement import Measurement

__all__ = ["UPDATE_FORMAT", "Expected", "UpdateHeader"]

UPDATE_FORMAT = f"fedkrso update {UPDATE}"


class UpdateHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What an update says about itself."""

    format: str = UPDATE_FORMAT
    run: str
    run_id: str = ""
    """The plan's: an update of an earlier run of the same name is another one."""
    round: int
    node: str
    version: int
    """The state it was trained from."""
    examples: int
    rank: int = 0
    """What was trained of the plan's rank, for methods that have one."""
    subspaces: tuple[int, ...] = ()
    """Indices of the seeds used, in the order of the accumulators' columns."""
    loss: Number
    """Mean training loss over the round."""
    seconds: Annotated[float, Meta(ge=0, le=1e9)]
    measured: Measurement | None = None
    """What the node measured of that state on held-out rows of its own, before it trained; None where the plan did not
    ask, and on a node without such rows."""


@dataclass(frozen=True)
class Expected:
    """What a record of an update must be: its shape, how its numbers travel, and the columns of the entry that it
    changes."""

    shape: tuple[int, int]
    coding: Coding
    columns: tuple[int, ...] | None = None
    """None for all."""
