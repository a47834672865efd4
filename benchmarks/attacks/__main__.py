# SPDX-License-Identifier: Apache-2.0
"""Accuracy under attack, for each rule and share of nodes that lie: SST-2 with MiniLM, 20 nodes.

    python -m benchmarks.attacks --data DATA --out FOLDER

Ten rounds of the task head alone, on what MiniLM makes of the texts (`benchmarks.attacks.heads`). What is measured is
written to FOLDER line by line: the same command goes on from there, and prints the table from what there is. Rules are
told how many lie (`liars`, `trim`), the best case for them. Scratch files are flushed as a run's are: a TMPDIR in
memory halves the time."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from benchmarks.attacks.cells import NODES, Kept, cells, table
from benchmarks.attacks.heads import head_data, head_run
from benchmarks.attacks.texts import read_texts

_SHARES = (0.1, 0.2, 0.3, 0.4)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="With a folder SST-2.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For features and results.")
@click.option("--rows", default=2000, show_default=True, help="That nodes share.")
@click.option("--held", default=500, show_default=True, help="Held-out rows.")
@click.option("--max-length", default=48, show_default=True)
@click.option("--split", default="iid", show_default=True, type=click.Choice(["iid", "dirichlet"]))
def main(data: Path, out: Path, rows: int, held: int, max_length: int, split: str) -> None:
    """Measure what is not there yet, then print the table."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    texts, kept = read_texts(data, rows, held, max_length), Kept(out / "results.jsonl")
    liars = [round(share * NODES) for share in _SHARES]
    if left := kept.left(cells(split, liars)):
        own = head_data(texts, split, out)
        for cell in left:
            kept.add(head_run(cell, texts, own))
    for line in table(kept, split, liars):
        click.echo(line)


if __name__ == "__main__":
    main()
