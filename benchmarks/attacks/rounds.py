# SPDX-License-Identifier: Apache-2.0
"""Several rounds of FedKRSO on the whole model with the same liars in each: 150 intents (CLINC150) with MiniLM, ten
nodes, from a head of sums that was made before anybody lied.

    python -m benchmarks.attacks.rounds --data DATA --out FOLDER

Accuracy after each round, for each rule and attack. A liar lies in every round: what it transforms is what it has
learned in that round from the state that its lies have led to. What is measured is written to FOLDER line by line: the
same command goes on from there, and prints the table from what there is. The first round's updates are trained once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.attacks.cells import RULES, Cell, Found, withstands
from benchmarks.attacks.first import CHUNK_BYTES, node_name
from benchmarks.attacks.texts import Texts, learning_of, read_texts, replica_of
from benchmarks.attacks.whole import WholeModel
from coordinator.job import SafetySection
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel
from coordinator.store.folder import RunFolder
from edge_client.worker.architecture.pooled import resolved_pooling
from fedcore.config.sections import HeadSection
from fedcore.methods.fedkrso import FedKRSOSettings
from fedkrso.tuning.trials import Sender, trained_update

__all__ = ["Course", "course", "head_of_sums", "table"]

_RULES = ("mean", "median", "multi-krum", "trimmed-mean", "geometric-median")
_ATTACKS = ("sign flip", "label flip", "backdoor")
"""The three that cost most of one round of the whole model (docs/details/attacks.md)."""


class Course(msgspec.Struct, frozen=True):
    """What a run came to, round by round; its last round is the cell's.

    Attributes:
        cell: Which.
        found: After each round.
    """

    cell: Cell
    found: tuple[Found, ...]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="With a folder clinc150.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For updates and results.")
@click.option("--rows", default=2000, show_default=True, help="That nodes share.")
@click.option("--held", default=250, show_default=True, help="Held-out rows.")
@click.option("--nodes", default=10, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--steps", default=4, show_default=True, help="Of a node in a round, of 16 rows.")
@click.option("--rates", default="2e-3,4e-3", show_default=True, help="Of layers and head.")
@click.option("--rule", "rules", multiple=True, type=click.Choice(tuple(RULES)), default=_RULES, show_default=True)
@click.option("--attack", "attacks", multiple=True, default=_ATTACKS, show_default=True)
@click.option("--share", "shares", multiple=True, type=float, default=(0.3, 0.2), show_default=True, help="Of liars.")
def main(
    data: Path,
    out: Path,
    rows: int,
    held: int,
    nodes: int,
    rounds: int,
    steps: int,
    rates: str,
    rules: Sequence[str],
    attacks: Sequence[str],
    shares: Sequence[float],
) -> None:
    """Measure what is not there yet, then print the table."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "rounds.jsonl"
    known = dict(_read(path))
    wanted = [Cell("iid", rule, "", 0, nodes, rounds) for rule in rules]
    wanted += [
        Cell("iid", rule, attack, round(share * nodes), nodes, rounds)
        for share in shares
        for attack in attacks
        for rule in rules
    ]
    if left := [cell for cell in wanted if cell not in known]:
        texts = read_texts(data, rows, held, 32, "clinc150")
        texts = replace(texts, section=resolved_pooling(texts.folder, texts.section)[0])
        whole = _whole(texts, out, nodes, steps, rates)
        start = whole.round.model(SafetySection()).published
        click.echo(f"Frozen features, head of sums: {whole.measured(wanted[0], start).accuracy:.3f}\n")
        for cell in left:
            known[cell] = course(whole, cell)
            with path.open("ab") as file:
                file.write(msgspec.json.encode(known[cell]) + b"\n")
    for line in table(known, tuple(rules)):
        click.echo(line)


def _whole(texts: Texts, out: Path, nodes: int, steps: int, rates: str) -> WholeModel:
    of_layers, of_head = (float(rate) for rate in rates.split(","))
    method = FedKRSOSettings(
        rank=4,
        num_seeds=2,
        steps=steps,
        interval_steps=steps // 2,
        batch_size=16,
        learning_rate=of_layers,
        tensor_learning_rate=of_head,
    )
    return WholeModel(texts, out, "iid", nodes, method, head_of_sums(texts, method, nodes))


def head_of_sums(texts: Texts, method: FedKRSOSettings, nodes: int) -> dict[str, NDArray[np.int64]]:
    """The head that all nodes' rows lead to, as the exact state has it.

    Args:
        texts: The task and the model.
        method: Of the rounds that follow.
        nodes: How many there are.
    """
    learning = replace(learning_of(texts, method, SafetySection()), head=HeadSection(start="ridge", rates=1.0))
    with tempfile.TemporaryDirectory() as scratch:
        model = GlobalModel(learning, ScratchKeeping(RunFolder(Path(scratch))), 0)
        model.begin(1, CHUNK_BYTES, lambda text: None)
        plan = model.plan(1, (), 0, CHUNK_BYTES)
        replica, updates = replica_of(plan, texts, Path(scratch) / "replica"), []
        for node, part in enumerate(texts.dealt("iid", nodes)):
            sender, path = Sender("r", node_name(node), SafetySection()), Path(scratch) / f"{node}.bin"
            updates.append(trained_update(replica, plan, [texts.train[at] for at in part], path, sender))
        model.close(plan, updates, CHUNK_BYTES)
    return {spec.name: model.state.sums[spec.name] for spec in plan.model_schema.tensors}


def course(whole: WholeModel, cell: Cell) -> Course:
    """A cell, measured after each round.

    Args:
        whole: The model and its nodes.
        cell: With as many rounds as it is to have.
    """
    return Course(cell, tuple(whole.measured(cell, state) for state in whole.states(cell)))


def _read(path: Path) -> Iterator[tuple[Cell, Course]]:
    if path.exists():
        for line in path.read_bytes().splitlines():
            one = msgspec.json.decode(line, type=Course)
            yield one.cell, one


def table(known: Mapping[Cell, Course], rules: Sequence[str]) -> Iterator[str]:
    """Accuracy after each round by attack, liars and rule; of the backdoor what the word does at the end. In brackets
    where a rule does not withstand so many.

    Args:
        known: Cells of one size.
        rules: In their order.
    """
    yield f"| attack | liars | {' | '.join(rules)} |"
    yield "|---" * (len(rules) + 2) + "|"
    for attack, liars in sorted({(cell.attack, cell.liars) for cell in known}):
        row = [
            next((one for one in known.values() if (one.cell.attack, one.cell.liars, one.cell.rule) == key), None)
            for key in ((attack, liars, rule) for rule in rules)
        ]
        yield f"| {attack or 'none'} | {liars or '–'} | {' | '.join(map(_shown, row))} |"


def _shown(one: Course | None) -> str:
    if one is None:
        return ""
    text = ", ".join(f"{found.accuracy:.3f}" for found in one.found)
    if one.cell.attack == "backdoor":
        text += f"; word {one.found[-1].before:.2f} → {one.found[-1].success:.2f}"
    return text if not one.cell.liars or withstands(one.cell) else f"({text})"


if __name__ == "__main__":
    main()
