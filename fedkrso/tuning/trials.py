# SPDX-License-Identifier: Apache-2.0
"""A job's run in one process, for a few rounds: what settings are worth on rows that nobody trains on.

Updates and published states are the real files, admitted, summed and published by the coordinator's round engine
(`coordinator.run.model`), trained and adopted by the nodes' own code. Nodes train one after the other on one replica,
which is what each of theirs would be; only wire and memory plans are left out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from coordinator.job import Job, SafetySection
from coordinator.rounds.policy import admit
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.store.folder import RunFolder
from coordinator.store.rows import UpdateRow
from edge_client.worker.data.tasks import Encoded
from edge_client.worker.train.evaluate import measures, scores_of
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Trainer
from fedcore.config.sections import HeadSection, TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.fields.types import HeadBegin
from fedcore.methods.interface import MethodSettings
from fedcore.round.plan import Plan
from fedcore.weights.schema import ModelSchema

__all__ = ["Measured", "Rows", "Sender", "Trials", "trained_update"]

_CPU = torch.device("cpu")
_CHUNK_BYTES = 262_144
_MEMORY = MemoryPlan(micro_batch_size=16, block_rows=4096, allocator="default")
# As a node plans that has room.
_ROOMY = MemoryPlan(micro_batch_size=16, block_rows=4096, allocator="default", dequantised=True)


@dataclass(frozen=True)
class Rows:
    """What is trained and measured on, as token ids.

    Attributes:
        nodes: Of each node its rows.
        held: Rows that nobody trains on.
    """

    nodes: Mapping[str, Sequence[Encoded]]
    held: Sequence[Encoded]


class Measured(msgspec.Struct, frozen=True):
    """A round of a trial."""

    round: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Sender:
    """Whose update it is, and what a job lets one weigh."""

    run: str
    node: str
    safety: SafetySection


def trained_update(
    replica: Replica, plan: Plan, rows: Sequence[Encoded], path: Path, sender: Sender, memory: MemoryPlan = _MEMORY
) -> UpdateRow:
    """A node's update of a round, trained here and admitted as the coordinator admits it.

    Args:
        replica: At the round's state; it is there again afterwards.
        plan: The round.
        rows: The node's.
        path: Where the update is written; finished intervals lie beside it, and are gone when it is there.
        sender: The node.
        memory: How it is trained; which sums are rounded where depends on its micro-batches.
    """
    trainer = Trainer(replica, rows, path.parent / "intervals", sender.run, sender.node, replica.model.pad_id, _CPU)
    trainer.train(plan, (memory,), path)
    admitted = admit(path, plan, sender.run, sender.node, sender.safety)
    return UpdateRow("", path.name, path.stat().st_size, admitted.header, admitted.norm, admitted.clip)


@dataclass
class Trials:
    """Trials of one job, each from the run's beginning.

    Args:
        job: What is learned, with its labels as a list.
        schema: What of the model trains.
        model_folder: The checkpoint's.
        rows: On which.
        scratch: For what a trial makes; nothing in it is needed afterwards.

    Attributes:
        model: What the last trial has come to, while its files are in `scratch`.
    """

    job: Job
    schema: ModelSchema
    model_folder: Path
    rows: Rows
    scratch: Path
    model: GlobalModel | None = field(default=None, init=False)
    _sums: dict[str, UpdateRow] = field(default_factory=dict, init=False)

    def rounds(self, method: MethodSettings, head: HeadBegin, rounds: int, again: int = 0) -> Iterator[Measured]:
        """Train and measure, round by round; with `ridge`, round 1 is the head's.

        Args:
            method: Settings in place of the job's.
            head: What a new head begins with.
            rounds: How many.
            again: As `head.again` of a job.
        """
        folder = RunFolder(self.scratch / "trial")
        shutil.rmtree(folder.root, ignore_errors=True)
        folder.root.mkdir(parents=True)
        job = self.job
        learning = Learning(
            method=method,
            seed=job.seed,
            task=job.task,
            base_kind=job.model.base,
            schema=self.schema,
            model_folder=self.model_folder,
            safety=job.safety,
            channel=job.channel,
            # As they are tried, so they are told.
            head=HeadSection(start=head, rates=1.0, again=again),
        )
        model, replica = GlobalModel(learning, ScratchKeeping(folder), 0), None
        self.model = model
        for server_round in range(1, rounds + 1):
            model.begin(server_round, _CHUNK_BYTES, lambda text: None)
            plan = model.plan(server_round, tuple(self.rows.nodes), 0.0, _CHUNK_BYTES)
            if replica is None:
                replica = Replica(plan, self.model_folder, folder.root / "replica", _CPU, torch.float32)
                replica.lighten()
            # One replica is never behind, and nobody looks whether it is.
            plan = msgspec.structs.replace(plan, start_digest="", checkpoint_digest="")
            head_round = head == "ridge" and server_round == 1
            updates = [self._update(node, replica, plan, folder, head_round=head_round) for node in self.rows.nodes]
            closed = model.close(plan, updates, _CHUNK_BYTES)
            model.publish(closed.objects, closed.row)
            taken = closed.objects[-1]
            path = folder.published_state(taken.version, taken.kind)
            replica.adopt(path, taken.generation, taken.kind, taken.digest)
            yield self._measured(replica, server_round, job.task)

    def _update(self, node: str, replica: Replica, plan: Plan, folder: RunFolder, *, head_round: bool) -> UpdateRow:
        """A node's update. Sums for a head do not depend on what is tried after it: they are made once."""
        kept = self._sums.get(node) if head_round else None
        path, sums = folder.root / f"{node}.bin", self.scratch / f"sums-{node}.bin"
        if kept is not None:
            shutil.copyfile(sums, path)
            return kept
        sender = Sender(self.job.run, node, self.job.safety)
        row = trained_update(replica, plan, self.rows.nodes[node], path, sender, _ROOMY)
        if head_round:
            shutil.copyfile(path, sums)
            self._sums[node] = row
        return row

    def _measured(self, replica: Replica, server_round: int, task: TaskSection) -> Measured:
        scores = scores_of(replica.model, self.rows.held, task, replica.model.pad_id, _CPU)
        accuracy, loss, _ = measures(scores, self.rows.held, task)
        return Measured(server_round, accuracy, loss)
