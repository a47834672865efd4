# SPDX-License-Identifier: Apache-2.0
"""Rounds of FedKRSO on the whole model, layers and head, under attack.

What honest nodes send in a first round does not depend on the rule, nor on what others send: it is trained once, and so
is what liars make of rows that lie; every rule then closes the round over the same files. Rounds after the first begin
where a cell's own rule and liars have led, so each of them is trained anew."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.cells import NODES, Cell, Found, measured, safety_of
from benchmarks.attacks.first import CHUNK_BYTES, FirstRound, node_name
from benchmarks.attacks.lies import OF_ROWS, OF_UPDATES, write_numbers
from benchmarks.attacks.texts import Texts
from coordinator.job import SafetySection
from coordinator.rounds.policy import admit
from coordinator.store.ledger import UpdateRow
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.state import PublishedState
from fedcore.round.plan import Plan

__all__ = ["METHOD", "WholeModel"]

METHOD: Final = FedKRSOSettings(
    rank=4, num_seeds=2, steps=40, interval_steps=20, batch_size=16, learning_rate=5e-3, tensor_learning_rate=1e-2
)


class WholeModel:
    """Runs cells, over updates that are trained once.

    Args:
        texts: The task and the model.
        folder: For updates, and for one cell's files at a time.
        split: How rows are dealt.
        nodes: How many there are.
        method: What is trained.
        head: As of `FirstRound`.
    """

    def __init__(
        self,
        texts: Texts,
        folder: Path,
        split: str,
        nodes: int = NODES,
        method: FedKRSOSettings = METHOD,
        head: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> None:
        self._texts, self._folder, self.nodes = texts, folder, nodes
        self.round = FirstRound(texts, folder / "run", method, nodes, head)
        lying = {attack: lie(texts.train, texts.word, len(texts.section.labels)) for attack, lie in OF_ROWS.items()}
        dealt = texts.dealt(split, nodes)
        self._rows = {"": [[texts.train[index] for index in part] for part in dealt]}
        for attack, rows in lying.items():
            each = len(rows) // len(texts.train)
            self._rows[attack] = [[rows[each * at + some] for at in part for some in range(each)] for part in dealt]
        self._flat: dict[Path, NDArray[np.float64]] = {}

    def run(self, cell: Cell) -> Found:
        """A cell, measured after its rounds."""
        return self.measured(cell, self.state(cell))

    def state(self, cell: Cell) -> PublishedState:
        """What a cell's last round publishes."""
        *_, last = self.states(cell)
        return last

    def states(self, cell: Cell) -> Iterator[PublishedState]:
        """What each of a cell's rounds publishes."""
        safety = safety_of(cell)
        model = self.round.model(safety)
        for server_round in range(1, cell.rounds + 1):
            if server_round > 1:
                model.begin(server_round, CHUNK_BYTES, lambda text: None)
            people = tuple(node_name(node) for node in range(self.nodes))
            plan = model.plan(server_round, people, 0, CHUNK_BYTES)
            plan = msgspec.structs.replace(plan, start_digest="", checkpoint_digest="")
            with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
                updates = list(self._updates(cell, plan, safety, model.published, Path(scratch)))
                closed = model.close(plan, updates, CHUNK_BYTES)
            model.publish(closed.objects, closed.row)
            yield model.published

    def measured(self, cell: Cell, state: PublishedState) -> Found:
        """Accuracy of a state, and what the word does to it."""
        held = self.round.labels(self._texts.held, state)
        labels = np.array([row.target for row in self._texts.held], np.int64)
        words = self.round.labels(self._texts.held_triggered, state) if cell.attack == "backdoor" else np.zeros(1, int)
        return measured(cell, [held, words], labels)

    def head_alone(self, cell: Cell) -> Found:
        """A cell, measured without what layers learned: how much the head by itself has come to."""
        state = self.state(cell)
        tensors = {spec.name for spec in self.round.plan.model_schema.tensors}
        still = PublishedState.zero(self.round.plan.training, self.round.plan.model_schema)
        entries = {name: part if name in tensors else still.entries[name] for name, part in state.entries.items()}
        return self.measured(cell, PublishedState(state.version, state.seeds, state.rank, entries, state.rows_from))

    def honest_numbers(self) -> NDArray[np.float64]:
        """What nodes send in the first round where nobody lies, (nodes, numbers)."""
        return np.stack([self._numbers(self._trained("", node, self.round.plan), node) for node in range(self.nodes)])

    def _updates(
        self, cell: Cell, plan: Plan, safety: SafetySection, state: PublishedState, scratch: Path
    ) -> Iterator[UpdateRow]:
        """Every node's, the first ones lying, admitted as the coordinator admits it."""
        paths, lie = [], OF_UPDATES.get(cell.attack)
        for node in range(self.nodes):
            attack = cell.attack if node < cell.liars and cell.attack in OF_ROWS else ""
            paths.append(self._trained(attack, node, plan, state, scratch))
        if lie is not None:
            numbers = np.stack([self._numbers(path, node, plan) for node, path in enumerate(paths)])
            for node, lies in enumerate(lie(numbers[: cell.liars], numbers[cell.liars :])):
                header = admit(paths[node], plan, "r", node_name(node), SafetySection()).header
                paths[node] = scratch / f"lie-{node_name(node)}.bin"
                write_numbers(paths[node], header, plan, lies)
        for node, path in enumerate(paths):
            admitted = admit(path, plan, "r", node_name(node), safety)
            place = str(path)
            yield UpdateRow("", place, path.stat().st_size, admitted.header, admitted.norm, admitted.clip)

    def _trained(
        self, attack: str, node: int, plan: Plan, state: PublishedState | None = None, scratch: Path | None = None
    ) -> Path:
        """A node's update: of the first round from what is there, or trained."""
        first = plan.round == 1
        folder = self._folder / "updates" / (attack or "honest").replace(" ", "-") if first else scratch
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{node_name(node)}.bin"
        self.round.train(self._rows[attack][node], node_name(node), path, plan, state)
        return path

    def _numbers(self, path: Path, node: int, plan: Plan | None = None) -> NDArray[np.float64]:
        """All numbers of an update; of those that every cell reads, from memory."""
        plan = plan or self.round.plan
        if plan.round > 1:
            return self.round.numbers(path, node_name(node), plan)
        if path not in self._flat:
            self._flat[path] = self.round.numbers(path, node_name(node))
        return self._flat[path]
