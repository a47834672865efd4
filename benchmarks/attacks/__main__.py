# SPDX-License-Identifier: Apache-2.0
"""Accuracy under attack, for each rule and share of nodes that lie: SST-2 with MiniLM, 20 nodes.

    python -m benchmarks.attacks --data DATA --out FOLDER

Two parts: `head`, ten rounds of the task head alone on what MiniLM makes of the texts, for every cell; and `whole`, one
round of FedKRSO on the whole model. What is measured is written to FOLDER line by line: the same command goes on from
there, and prints the tables from what there is. Rules are told how many lie (`liars`, `trim`), the best case for
them."""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch

from benchmarks.attacks.cells import NODES, Kept, cells, table
from benchmarks.attacks.heads import head_data, head_run
from benchmarks.attacks.texts import read_texts
from benchmarks.attacks.whole import WholeModel

_SHARES = (0.1, 0.2, 0.3, 0.4)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="With a folder SST-2.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For features, updates and results.")
@click.option("--rows", default=2000, show_default=True, help="That nodes share.")
@click.option("--held", default=500, show_default=True, help="Held-out rows.")
@click.option("--max-length", default=48, show_default=True)
@click.option("--parts", default="head,whole", show_default=True)
@click.option("--splits", default="iid,dirichlet", show_default=True, help="Of the head's part; the model's has iid.")
@click.option("--seconds", default=0.0, help="Stop measuring after so many, and print what there is.")
def main(data: Path, out: Path, rows: int, held: int, max_length: int, parts: str, splits: str, seconds: float) -> None:
    """Measure what is not there yet, then print tables."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    texts, kept, started = read_texts(data, rows, held, max_length), Kept(out / "results.jsonl"), time.monotonic()
    every, some = ([round(share * NODES) for share in shares] for shares in (_SHARES, _SHARES[1::2]))

    def in_time() -> bool:
        return not seconds or time.monotonic() - started < seconds

    for part in parts.split(","):
        for split in splits.split(",") if part == "head" else ("iid",):
            liars = every if part == "head" else some
            left = kept.left(cells(part, split, liars))
            if left and part == "head":
                rows_of_nodes = head_data(texts, split, out)
                for cell in left:
                    if in_time():
                        kept.add(head_run(cell, texts, rows_of_nodes))
            elif left and in_time():
                whole = WholeModel(texts, split, max(liars), out)
                for cell in left:
                    if in_time():
                        kept.add(whole.run(cell))
            wanted = list(cells(part, split, liars))
            click.echo(f"\n{part}, {split}: {len(wanted) - len(kept.left(wanted))} of {len(wanted)}\n")
            for line in table(kept, part, split, liars):
                click.echo(line)


if __name__ == "__main__":
    main()
