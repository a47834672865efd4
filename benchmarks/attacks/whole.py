# SPDX-License-Identifier: Apache-2.0
"""One round of FedKRSO on the whole model, from where a run begins: every node trains once, and what it sends is kept;
each cell then closes the round with some of it exchanged for lies, publishes and measures. Honest training of a first
round is the same whatever others do, so the updates of all cells are these."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.cells import NODES, Cell, Found, measured, safety_of
from benchmarks.attacks.first import CHUNK_BYTES, FirstRound, node_name
from benchmarks.attacks.lies import OF_ROWS, OF_UPDATES, write_numbers
from benchmarks.attacks.texts import CPU, Texts
from coordinator.rounds.policy import admit
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import UpdateRow
from edge_client.worker.data.tasks import Encoded
from edge_client.worker.train.evaluate import scores_of

__all__ = ["WholeModel"]

_HELD: Final = 300


class WholeModel:
    """A round's updates, honest and with lies about rows, and one model to measure with.

    Args:
        texts: Rows.
        split: How they are dealt.
        most_liars: Of all cells: so many nodes train with lies about their rows, too.
        folder: For what is kept.

    Attributes:
        round: What nodes train.
    """

    def __init__(self, texts: Texts, split: str, most_liars: int, folder: Path) -> None:
        self._texts, self._kept, self._folder = texts, folder / f"whole-{split}", folder / "run"
        self._kept.mkdir(parents=True, exist_ok=True)
        self.round = FirstRound(texts, self._folder)
        self._made: tuple[tuple[str, int], NDArray[np.float64]] = ("", 0), np.zeros(0)
        for node, part in enumerate(texts.dealt(split)):
            own = [texts.train[index] for index in part]
            self.round.train(own, node_name(node), self.path(node))
            if node < most_liars:
                for attack, lie in OF_ROWS.items():
                    self.round.train(lie(own, texts.word), node_name(node), self.path(node, attack))

    def path(self, node: int, kind: str = "honest") -> Path:
        """A node's update."""
        return self._kept / f"{node_name(node)}-{kind.replace(' ', '-')}.bin"

    def numbers(self, node: int) -> NDArray[np.float64]:
        """What an honest node sends, end to end."""
        return self.round.numbers(self.path(node), node_name(node))

    def run(self, cell: Cell) -> Found:
        """The round with a cell's rule and lies, measured."""
        model = self.round.model(safety_of(cell))
        updates = [self._update(node, cell) for node in range(NODES)]
        closed = model.close(self.round.plan, updates, CHUNK_BYTES)
        model.publish(closed.objects, closed.row)
        taken = next(obj for obj in closed.objects if obj.kind == "whole")
        path = RunFolder(self._folder).published_state(1, "whole")
        self.round.replica.adopt(path, taken.generation, "whole", taken.digest)
        held = self._texts.held[:_HELD]
        said = [self._said(rows) for rows in (held, self._texts.held_triggered[: _HELD // 2])]
        return measured(cell, said, np.array([row.target for row in held], np.int64))

    def _said(self, rows: Sequence[Encoded]) -> NDArray[np.int64]:
        """Labels, with rows of one length together: little is padded."""
        replica = self.round.replica
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        some, found = [rows[index] for index in order], np.zeros(len(rows), np.int64)
        scores = scores_of(replica.model, some, self._texts.section, replica.model.pad_id, CPU)
        found[order] = scores.outputs.argmax(axis=1)
        return found

    def _update(self, node: int, cell: Cell) -> UpdateRow:
        """What a node sends in a cell."""
        name, plan, lies = node_name(node), self.round.plan, node < cell.liars
        path = self._folder / f"{name}.bin"
        shutil.copyfile(self.path(node, cell.attack if lies and cell.attack in OF_ROWS else "honest"), path)
        if lies and cell.attack in OF_UPDATES:
            write_numbers(path, self.round.header(self.path(node), name), plan, self._lies(cell)[node])
        admitted = admit(path, plan, "r", name, safety_of(cell))
        return UpdateRow("", path.name, path.stat().st_size, admitted.header, admitted.norm, admitted.clip)

    def _lies(self, cell: Cell) -> NDArray[np.float64]:
        """What all liars send, made once for all rules."""
        key = cell.attack, cell.liars
        if self._made[0] != key:
            numbers = np.stack([self.numbers(node) for node in range(NODES)])
            self._made = key, OF_UPDATES[cell.attack](numbers[: cell.liars], numbers[cell.liars :])
        return self._made[1]
