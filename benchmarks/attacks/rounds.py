# SPDX-License-Identifier: Apache-2.0
"""Several rounds of FedKRSO on layers and head with the same liars in each: SST-2, ten nodes, MiniLM's first blocks,
since every round after the first is trained anew for every rule and attack.

    python -m benchmarks.attacks.rounds --data DATA --out FOLDER

Accuracy after each round, for each rule and attack. A liar lies in every round: what it transforms is what it has
learned in that round from the state that its lies have led to. What is measured is written to FOLDER line by line: the
same command goes on from there, and prints the table from what there is. The first round's updates are trained once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import msgspec
import torch

from benchmarks.attacks.cells import RULES, Cell, Found, withstands
from benchmarks.attacks.texts import Texts, first_blocks, read_texts
from benchmarks.attacks.whole import WholeModel
from fedcore.methods.fedkrso import FedKRSOSettings

__all__ = ["Course", "course"]

_RULES = ("mean", "median", "multi-krum", "trimmed-mean", "geometric-median")
_ATTACKS = ("sign flip", "label flip", "backdoor")
"""The three that cost most of one round of the whole model."""


class Course(msgspec.Struct, frozen=True):
    """What a run came to, round by round; its last round is the cell's.

    Attributes:
        cell: Which.
        found: After each round.
    """

    cell: Cell
    found: tuple[Found, ...]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="With a folder SST-2.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For updates and results.")
@click.option("--rows", default=2000, show_default=True, help="That nodes share.")
@click.option("--held", default=300, show_default=True, help="Held-out rows.")
@click.option("--nodes", default=10, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--steps", default=6, show_default=True, help="Of a node in a round, of 16 rows.")
@click.option("--blocks", default=2, show_default=True, help="Of MiniLM's six.")
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
    blocks: int,
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
        texts = read_texts(data, rows, held, 48, first_blocks(blocks, out / f"blocks-{blocks}"))
        whole = _whole(texts, out, nodes, steps)
        for cell in left:
            known[cell] = course(whole, cell)
            with path.open("ab") as file:
                file.write(msgspec.json.encode(known[cell]) + b"\n")
    for line in table(known, tuple(rules)):
        click.echo(line)


def _whole(texts: Texts, out: Path, nodes: int, steps: int) -> WholeModel:
    method = FedKRSOSettings(
        rank=4,
        num_seeds=2,
        steps=steps,
        interval_steps=steps // 2,
        batch_size=16,
        learning_rate=5e-3,
        tensor_learning_rate=1e-2,
    )
    return WholeModel(texts, out, "iid", nodes, method)


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
