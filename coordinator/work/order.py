# SPDX-License-Identifier: Apache-2.0
"""What a worker is to make of a round's updates, where their sum is not what the round comes to
(`fedcore.round.training.Training.work`)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from coordinator.store.rows import UpdateRow
from fedcore.model.state import PublishedState
from fedcore.model.update import WeightedUpdate
from fedcore.round.plan import Plan
from fedcore.system.durable import sha256_of
from fedcore.worker.work import Part, Work

__all__ = ["Order", "order_of"]


@dataclass(frozen=True)
class Order:
    """Work that a round waits for before it can be closed.

    Attributes:
        updates: Of the participants, as they were admitted.
        command: For the worker.
        memory_bytes: What that may take.
    """

    updates: tuple[UpdateRow, ...]
    command: Work
    memory_bytes: int

    @property
    def plan(self) -> Plan:
        """The round's."""
        return self.command.plan

    @property
    def path(self) -> Path:
        """Of the update that it comes to."""
        return Path(self.command.path)

    @property
    def log(self) -> Path:
        """For the worker's own output."""
        return Path(self.command.folder) / "worker.log"


def order_of(
    plan: Plan,
    updates: Sequence[UpdateRow],
    counted: Sequence[WeightedUpdate],
    start: tuple[PublishedState, str],
    model_folder: Path,
    folder: Path,
    memory_bytes: int,
) -> Order:
    """Order a round's work; what it starts from is written where the worker finds it.

    Args:
        plan: The round's.
        updates: Of the participants.
        counted: The same, as each counts.
        start: The published state that the round starts from, and the model's digest then.
        model_folder: The checkpoint's.
        folder: For the work; that of earlier rounds makes room.
        memory_bytes: What a worker may take.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start[0].write(folder / "start.bin")
    # As many of a node's examples as the job lets it weigh; where all weigh the same, as many as the least has.
    least = min(update.header.examples for update in counted)
    parts = []
    for update in sorted(counted, key=lambda one: one.header.node):
        count = least if plan.training.share == "uniform" else min(update.weight, update.header.examples)
        if update.clip is not None:
            count = count * update.clip.numerator >> update.clip.shift
        parts.append(Part(str(update.path), update.header, max(1, count)))
    said = [(part.header.node, part.examples, sha256_of(Path(part.path))) for part in parts]
    key = hashlib.sha256(msgspec.msgpack.encode((plan.round, plan.training, start[1], said))).hexdigest()
    command = Work(
        plan=plan,
        model_folder=str(model_folder),
        state=str(folder / "start.bin"),
        digest=start[1],
        parts=tuple(parts),
        key=key,
        folder=str(folder),
        path=str(folder / "update.bin"),
        # The others are the loop's.
        threads=max(1, (os.cpu_count() or 1) // 2),
    )
    return Order(tuple(updates), command, memory_bytes)
