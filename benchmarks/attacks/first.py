# SPDX-License-Identifier: Apache-2.0
"""The first round of FedKRSO on the whole model: what nodes send from where a run begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.cells import NODES
from benchmarks.attacks.lies import flat_update
from benchmarks.attacks.texts import CPU, Texts, learning_of, replica_of
from coordinator.job import SafetySection
from coordinator.rounds.policy import admit
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel
from coordinator.store.folder import RunFolder
from edge_client.worker.data.tasks import Encoded, Scores
from edge_client.worker.train.evaluate import scores_of
from edge_client.worker.train.trainer import Trainer
from fedcore.device.memoryplan import MemoryPlan
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.state import PublishedState
from fedcore.numbers.accumulator import quantise_rows
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan

__all__ = ["CHUNK_BYTES", "METHOD", "FirstRound", "node_name"]

CHUNK_BYTES: Final = 65_536
# Every node uses every subspace: a rule counts who leaves one out as saying zero.
METHOD: Final = FedKRSOSettings(steps=20, interval_steps=4, batch_size=8, learning_rate=1e-3, tensor_learning_rate=1e-2)
_MEMORY: Final = MemoryPlan(micro_batch_size=16, block_rows=4096, allocator="default", dequantised=True)


class FirstRound:
    """A plan, and one model that trains as each node.

    Args:
        texts: The task and the model.
        folder: Of the coordinator's side and the model.
        method: What is trained; None for `METHOD`.
        nodes: How many there are.
        head: The exact state's numbers of a head that the round begins with; left out: a random one.

    Attributes:
        plan: The round's.
        replica: At the state before the round, or at what it has adopted since.
    """

    def __init__(
        self,
        texts: Texts,
        folder: Path,
        method: FedKRSOSettings | None = None,
        nodes: int = NODES,
        head: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> None:
        self._texts, self._folder, self._method, self._head = texts, folder, method or METHOD, dict(head or {})
        model = self.model(SafetySection())
        plan = model.plan(1, tuple(node_name(node) for node in range(nodes)), 0, CHUNK_BYTES)
        self.plan = msgspec.structs.replace(plan, start_digest="", checkpoint_digest="")
        self.replica = replica_of(plan, texts, folder / "replica")
        self._start = self.replica.state = model.published

    def model(self, safety: SafetySection) -> GlobalModel:
        """The coordinator's side as the round begins."""
        keeping = ScratchKeeping(RunFolder(self._folder))
        model = GlobalModel(learning_of(self._texts, self._method, safety), keeping, 0)
        model.state = replace(model.state, sums={**model.state.sums, **self._head})
        model.published = model.state.publish()
        model.begin(1, CHUNK_BYTES, lambda text: None)
        return model

    def train(
        self,
        rows: Sequence[Encoded],
        node: str,
        path: Path,
        plan: Plan | None = None,
        state: PublishedState | None = None,
    ) -> None:
        """Write what a node with these rows sends, unless it is there; in the first round, or in a later one from the
        state before it."""
        if path.exists():
            return
        plan = plan or self.plan
        self.replica.state = state or self._start
        pad_id, intervals = self.replica.model.pad_id, self._folder / "intervals"
        trainer = Trainer(self.replica, rows, intervals, "r", node, pad_id, CPU)
        trainer.train(plan, (_MEMORY,), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def header(self, path: Path, node: str, plan: Plan | None = None) -> UpdateHeader:
        """What an update says of itself."""
        return admit(path, plan or self.plan, "r", node, SafetySection()).header

    def numbers(self, path: Path, node: str, plan: Plan | None = None) -> NDArray[np.float64]:
        """All numbers of an update end to end."""
        return flat_update(path, self.header(path, node, plan), plan or self.plan)

    def parts(self, numbers: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """The same, entry by entry."""
        shapes = self.plan.training.shapes(self.plan.model_schema)
        ends = np.cumsum([rows * columns for rows, columns in shapes.values()])[:-1]
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(shapes.items(), np.split(numbers, ends), strict=True)
        }

    def losses(self, rows: Sequence[Encoded], numbers: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Each row's loss by the model before the round, or with what numbers change put on it."""
        state = self._start
        if numbers is not None:
            entries = {name: quantise_rows(part.astype(np.float32), 16) for name, part in self.parts(numbers).items()}
            state = PublishedState(state.version, state.seeds, state.rank, entries, state.rows_from)
        return self._scores(rows, state).losses

    def labels(self, rows: Sequence[Encoded], state: PublishedState) -> NDArray[np.int64]:
        """What a state has the model say of each row."""
        return np.asarray(self._scores(rows, state).outputs.argmax(axis=1), np.int64)

    def _scores(self, rows: Sequence[Encoded], state: PublishedState) -> Scores:
        self.replica.state = state
        self.replica.restore()
        # Rows of one length together: little is padded.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        some, back = [rows[index] for index in order], np.argsort(order)
        found = scores_of(self.replica.model, some, self._texts.section, self.replica.model.pad_id, CPU)
        return Scores(found.losses[back], found.weights[back], found.outputs[back])


def node_name(node: int) -> str:
    """Of its number."""
    return f"node-{node:02}"
