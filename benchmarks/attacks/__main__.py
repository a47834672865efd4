# SPDX-License-Identifier: Apache-2.0
"""Accuracy under attack, for each rule and share of nodes that lie: SST-2 with MiniLM, 20 nodes.

    python -m benchmarks.attacks --data DATA --out FOLDER

Ten rounds of the task head alone, on what MiniLM makes of the texts (`benchmarks.attacks.heads`). What is measured is
written to FOLDER line by line: the same command goes on from there, and prints the table from what there is. Rules are
told how many lie (`liars`, `trim`), the best case for them. Scratch files are flushed as a run's are: a TMPDIR in
memory halves the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.attacks.cells import ATTACKS, NODES, Cell, Kept, cells, table
from benchmarks.attacks.heads import head_data, head_run
from benchmarks.attacks.texts import read_texts
from benchmarks.attacks.whole import WholeModel

_SHARES = (0.2, 0.4, 0.1, 0.3)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="With a folder SST-2.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For features and results.")
@click.option("--rows", default=2000, show_default=True, help="That nodes share.")
@click.option("--held", default=500, show_default=True, help="Held-out rows.")
@click.option("--max-length", default=48, show_default=True)
@click.option("--split", default="iid", show_default=True, type=click.Choice(["iid", "dirichlet"]))
@click.option("--nodes", default=NODES, show_default=True)
@click.option("--rounds", default=0, show_default=True, help="Of the whole model; 0: ten of the head alone.")
@click.option("--attack", "attacks", multiple=True, type=click.Choice(ATTACKS), help="Left out: all.")
@click.option("--share", "shares", multiple=True, type=float, default=_SHARES, show_default=True, help="Of liars.")
def main(
    data: Path, out: Path, rows: int, held: int, max_length: int, split: str, nodes: int, rounds: int, **chosen: Any
) -> None:
    """Measure what is not there yet, then print the table."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    texts, kept = read_texts(data, rows, held, max_length), Kept(out / "results.jsonl")
    liars = [round(share * nodes) for share in chosen["shares"]]
    attacks = ("", *(chosen["attacks"] or ATTACKS))
    wanted = [cell for cell in cells(split, liars, nodes, rounds) if cell.attack in attacks]
    if (left := kept.left(wanted)) and rounds:
        whole = WholeModel(texts, out, split, nodes)
        for cell in left:
            kept.add(whole.run(cell))
        found = whole.head_alone(Cell(split, "mean", "", 0, nodes, rounds))
        click.echo(f"Without liars, by the mean, with what the head alone has learned: {found.accuracy:.3f}\n")
    elif left:
        own = head_data(texts, split, out)
        for cell in left:
            kept.add(head_run(cell, texts, own))
    for line in table(kept, split, liars, nodes, rounds):
        click.echo(line)


if __name__ == "__main__":
    main()
