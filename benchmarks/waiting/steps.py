# SPDX-License-Identifier: Apache-2.0
"""A training step of a model's shape beside PEFT's LoRA, on float32 and on bitsandbytes' int8 weights.

    python -m benchmarks.waiting.steps CONFIG.json [--threads 1 --threads 2] [--batch 4] [--length 128]

Each row in a process of its own, by turns, so that what else the machine does meets all of them; seconds are the
clock's, medians over the turns; memory is the anonymous resident peak, with weights. The tuned allocator is what a
worker runs with when memory is short, the default one what people run LoRA with."""

from __future__ import annotations

import statistics
from pathlib import Path

import click

from edge_client.commands.bench_memory import Row, spawn

_ROWS = ("fedkrso", "fedkrso-dequantised", "lora", "lora-float")
_ALLOCATORS = ("default", "tuned")


@click.command()
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--threads", multiple=True, default=(1, 2), show_default=True)
@click.option("--batch", default=4, show_default=True)
@click.option("--length", default=128, show_default=True)
@click.option("--turns", default=3, show_default=True)
@click.option("--steps", default=3, show_default=True, help="Timed steps a turn, after one that warms up.")
def main(config: Path, threads: tuple[int, ...], batch: int, length: int, turns: int, steps: int) -> None:
    """Print a table a number of threads."""
    for count in threads:
        sizes = {"steps": steps, "threads": count, "batch": batch, "length": length}
        found: dict[str, list[Row]] = {}
        for _ in range(turns):
            for method in _ROWS:
                for allocator in _ALLOCATORS:
                    found.setdefault(f"{method}, {allocator}", []).append(
                        spawn(method, False, allocator, sizes, config.resolve())
                    )
        seconds = {name: statistics.median(row["step_seconds"] for row in rows) for name, rows in found.items()}
        best = min(taken for name, taken in seconds.items() if name.startswith("lora"))
        click.echo(f"\n| {count} threads | s a step | of the best LoRA's | peak, MB |\n|---|---|---|---|")
        for name, taken in seconds.items():
            peak = statistics.median(row["peak_bytes"] for row in found[name]) / 1e6
            click.echo(f"| {name} | {taken:.2f} | {taken / best:.2f} | {peak:,.0f} |")


if __name__ == "__main__":
    main()
