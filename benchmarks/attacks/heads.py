# SPDX-License-Identifier: Apache-2.0
"""Rounds of a task head alone, on what MiniLM makes of texts once and for all: cheap enough for every rule, attack and
share of liars over many rounds. Plans, update files, limits, rules and published states are a run's own; only the
training is a few lines here (softmax regression by Adam, as a worker's)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.cells import NODES, Cell, Found, measured, safety_of
from benchmarks.attacks.lies import OF_ROWS, OF_UPDATES, write_numbers
from benchmarks.attacks.texts import Texts, features, learning_of
from coordinator.job import SafetySection
from coordinator.rounds.policy import admit
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import UpdateRow
from edge_client.worker.data.batches import Encoded
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.weights.initial import initial_tensor

__all__ = ["HeadData", "head_data", "head_of", "head_run", "head_start", "trained"]

_ROUNDS: Final = 10
_CHUNK: Final = 65_536
_METHOD: Final = FedAvgSettings(steps=20, interval_steps=20, batch_size=16, tensor_learning_rate=5e-3)
Rows = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class HeadData:
    """Features and labels.

    Attributes:
        nodes: Of each node.
        lying: Of each node, as if it lied about its rows, by attack.
        held: Held-out rows.
        held_triggered: Features of those with the backdoor's word.
    """

    nodes: Sequence[Rows]
    lying: Mapping[str, Sequence[Rows]]
    held: Rows
    held_triggered: NDArray[np.float32]


def head_data(texts: Texts, split: str, cache: Path) -> HeadData:
    """Features of all rows, as they are and with the word; kept in a file."""
    made = {attack: lie(texts.train, texts.word, 2) for attack, lie in OF_ROWS.items()}
    # What a backdoor adds is every second row of it.
    wanted = {
        "train": texts.train,
        "train_triggered": made["backdoor"][1::2],
        "held": texts.held,
        "held_triggered": texts.held_triggered,
    }
    path = cache / "features.npz"
    if not path.exists():
        found = {}
        for name, rows in wanted.items():
            with tempfile.TemporaryDirectory() as scratch:
                found[name] = features(texts, _METHOD, rows, Path(scratch))
        np.savez(path, **found)  # type: ignore[arg-type]
    with np.load(path) as loaded:
        x = {name: loaded[name] for name in wanted}
    dealt = texts.dealt(split)
    nodes = [(x["train"][part], _labels(texts.train)[part]) for part in dealt]
    both = np.stack([x["train"], x["train_triggered"]], axis=1)
    backdoor = [
        (both[part].reshape(-1, both.shape[2]), _labels(made["backdoor"]).reshape(-1, 2)[part].reshape(-1))
        for part in dealt
    ]
    flip = [(x["train"][part], _labels(made["label flip"])[part]) for part in dealt]
    return HeadData(
        nodes, {"label flip": flip, "backdoor": backdoor}, (x["held"], _labels(texts.held)), x["held_triggered"]
    )


def head_run(cell: Cell, texts: Texts, data: HeadData) -> Found:
    """All rounds of one cell, measured."""
    head = head_of(cell, texts, data)
    said = [(x @ head[:, :-1].T + head[:, -1]).argmax(axis=1) for x in (data.held[0], data.held_triggered)]
    return measured(cell, said, data.held[1])


def head_of(cell: Cell, texts: Texts, data: HeadData) -> NDArray[np.float64]:
    """The head that is published after all rounds, (labels, features + 1)."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        learning = learning_of(texts, _METHOD, safety_of(cell), head_alone=True)
        model = GlobalModel(learning, ScratchKeeping(folder), 0)
        for server_round in range(1, _ROUNDS + 1):
            model.begin(server_round, _CHUNK, lambda text: None)
            plan = model.plan(server_round, tuple(f"node-{node:02}" for node in range(NODES)), 0, _CHUNK)
            updates = list(_round(cell, data, plan, _head(model, plan), folder.root))
            closed = model.close(plan, updates, _CHUNK)
            model.publish(closed.objects, closed.row)
        return _head(model, plan)


def head_start(texts: Texts) -> tuple[Plan, NDArray[np.float64]]:
    """The first round's plan, and the head that it begins with."""
    with tempfile.TemporaryDirectory() as scratch:
        learning = learning_of(texts, _METHOD, SafetySection(), head_alone=True)
        model = GlobalModel(learning, ScratchKeeping(RunFolder(Path(scratch))), 0)
        model.begin(1, _CHUNK, lambda text: None)
        plan = model.plan(1, (), 0, _CHUNK)
        return plan, _head(model, plan)


def _head(model: GlobalModel, plan: Plan) -> NDArray[np.float64]:
    """The published head, (labels, features + 1)."""
    values = {}
    for spec in plan.model_schema.tensors:
        start = initial_tensor(spec.name, spec.shape, plan.training.run_seed, bias=spec.start)
        values[spec.name] = start.reshape(spec.matrix) + model.published.entries[spec.name].values()
    weight, bias = sorted(values.values(), key=lambda value: -value.size)
    return np.concatenate([weight, bias.reshape(-1, 1)], axis=1).astype(np.float64)


def _round(cell: Cell, data: HeadData, plan: Plan, start: NDArray[np.float64], folder: Path) -> Iterator[UpdateRow]:
    """Every node's update; the first ones lie."""
    rows = [*data.lying.get(cell.attack, data.nodes)[: cell.liars], *data.nodes[cell.liars :]]
    changes = np.stack([_flat(trained(start, *own, plan, node) - start, plan) for node, own in enumerate(rows)])
    if cell.attack in OF_UPDATES:
        changes[: cell.liars] = OF_UPDATES[cell.attack](changes[: cell.liars], changes[cell.liars :])
    for node, change in enumerate(changes):
        name = f"node-{node:02}"
        header = UpdateHeader(
            run="r",
            round=plan.round,
            node=name,
            version=plan.version,
            examples=len(data.nodes[node][1]),
            loss=0.0,
            seconds=0.0,
        )
        path = folder / f"{name}.bin"
        write_numbers(path, header, plan, change)
        admitted = admit(path, plan, "r", name, safety_of(cell))
        yield UpdateRow("", path.name, path.stat().st_size, admitted.header, admitted.norm, admitted.clip)


def _flat(change: NDArray[np.float64], plan: Plan) -> NDArray[np.float64]:
    """As the plan has the entries."""
    parts = {True: change[:, :-1].reshape(-1), False: change[:, -1]}
    shapes = plan.training.shapes(plan.model_schema).values()
    return np.concatenate([parts[columns * rows == parts[True].size] for rows, columns in shapes])


def trained(
    start: NDArray[np.float64], x: NDArray[np.float32], y: NDArray[np.int64], plan: Plan, node: int
) -> NDArray[np.float64]:
    """Softmax regression by Adam, with batches that follow from round and node."""
    training, chance = plan.training, np.random.default_rng((plan.round, node))
    ones = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1).astype(np.float64)
    head, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(1, training.steps + 1):
        some = chance.choice(len(y), min(training.batch_size, len(y)), replace=False)
        scores = ones[some] @ head.T
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        error = scores / scores.sum(axis=1, keepdims=True) - np.eye(len(head))[y[some]]
        gradient = error.T @ ones[some] / len(some)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        head -= training.tensor_learning_rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return np.asarray(head)


def _labels(rows: Sequence[Encoded]) -> NDArray[np.int64]:
    return np.array([row.target for row in rows], np.int64)
