# SPDX-License-Identifier: Apache-2.0
"""What is to be added up in a round, as a file in the run's folder that every worker reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fedcore.errors import RunError
from fedcore.model.pieces import Cut, Piece, add_piece, cut_for, empty_sum, write_sum
from fedcore.model.update import WeightedUpdate
from fedcore.numbers.clip import Clip
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan

__all__ = ["Task", "read_task", "write_task"]


class _Update(msgspec.Struct, frozen=True):
    file: str
    header: UpdateHeader
    weight: int
    clip: Clip | None


class _Written(msgspec.Struct, frozen=True):
    plan: Plan
    pieces: int
    updates: tuple[_Update, ...]


@dataclass(frozen=True)
class Task:
    """A round's sum.

    Attributes:
        plan: The round's.
        updates: In one order for all.
        cut: Into pieces.
    """

    plan: Plan
    updates: Sequence[WeightedUpdate]
    cut: Cut

    @classmethod
    def of(cls, plan: Plan, updates: Sequence[WeightedUpdate], pieces: int) -> Task:
        """Cut into so many pieces, as all do who read the same."""
        return cls(plan, updates, cut_for(plan.training.shapes(plan.model_schema), len(updates), pieces))

    def work(self, piece: Piece, to: Path) -> str:
        """Add a piece up into a file; its SHA-256.

        Raises:
            UpdateRefused: An update's file is not what was admitted any more.
        """
        total = empty_sum(self.plan, self.cut.blocks[piece.block])
        add_piece(self.updates, self.plan, self.cut, piece, total)
        return write_sum(to, total)


def write_task(path: Path, root: Path, plan: Plan, updates: Sequence[WeightedUpdate], pieces: int) -> str:
    """Write what is to be added up; the file's SHA-256.

    Args:
        path: Where.
        root: The run's folder, in which the updates lie.
        plan: The round's.
        updates: With their shares.
        pieces: As `Task.of`.
    """
    listed = (_Update(str(one.path.relative_to(root)), one.header, one.weight, one.clip) for one in updates)
    data = msgspec.msgpack.encode(_Written(plan, pieces, tuple(listed)))
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(data)
    beside.replace(path)
    return hashlib.sha256(data).hexdigest()


def read_task(path: Path, root: Path, sha256: str) -> Task:
    """Read what `write_task` wrote.

    Raises:
        RunError: It is not there, or is another.
    """
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("it has other bytes")
        written = msgspec.msgpack.decode(data, type=_Written)
    except (OSError, ValueError) as error:
        raise RunError(f"what is to be added up cannot be read: {error}", place=str(path)) from None
    updates = [WeightedUpdate(root / one.file, one.header, one.weight, one.clip) for one in written.updates]
    return Task.of(written.plan, updates, written.pieces)
