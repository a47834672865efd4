# SPDX-License-Identifier: Apache-2.0
"""All methods on the same clients, rows and wire, each with the same search, from a head of sums:

    python -m benchmarks.comparison run --data DATA --out OUT --tasks sst2,clinc150 --splits dirichlet:0.5 --seeds 0
    python -m benchmarks.comparison table
    python -m benchmarks.comparison overview --preset learn
    python -m benchmarks.comparison central --data DATA --task cola --rates 3e-5,1e-4 --epochs 4
    python -m benchmarks.comparison means --data DATA --method 'fedkrso[learning_rate=1e-3,tensor_learning_rate=2e-3]'

The first line runs what the file of cells does not have: a learning rate of three, or of more while the best is at the
edge, is chosen on Dirichlet 0.5 and tuning rows of another seed, once for each task and method, and then each split and
seed is a run. `--preset` is a size of `fedkrso bench paper`, each with a file of its own and a folder OUT of its own;
`--ends` has a head from sums at each run's end too. Ended at any moment, it goes on. The second line prints the tables
from the file alone, the third what docs/results.md begins with. The fourth trains the same model at one place, and the
fifth has a run's states beside means of the last ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.comparison.cells import HEAD_AT_END, Cells, cells_of
from benchmarks.comparison.central import Central, measured
from benchmarks.comparison.means import means
from benchmarks.comparison.methods import COMPARED, FROZEN, FULL
from benchmarks.comparison.overview import ahead, quality, spent
from benchmarks.comparison.runner import MODEL, Runner
from benchmarks.comparison.systems import SYSTEMS
from benchmarks.comparison.tables import costs, curve, paired, results, searched
from fedcore.config.models import resolve_model_folder
from research.runner import locked

_TABLE = [name for name in COMPARED if "," not in name or "own rows" in name]
OVERVIEW = [name for name in _TABLE if "own rows" not in name]
"""FedSA-LoRA has no head that all share."""
_BESIDE = [name for name in COMPARED if name not in _TABLE]
_TASKS = ("sst2", "clinc150")
_preset = click.option("--preset", type=click.Choice(("table", "learn", "deep")), default="table", show_default=True)
_cells = click.option(
    "--cells", type=click.Path(path_type=Path), default=None, help="File of the cells; the preset's own unless given."
)
_SPLITS = ("dirichlet:10", "dirichlet:1", "dirichlet:0.5", "dirichlet:0.1", "labels")


@click.group()
def main() -> None:
    """Run what is missing, or print what is there."""


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
@click.option("--tasks", default=",".join(_TASKS), show_default=True)
@click.option("--splits", default="dirichlet:0.5,dirichlet:0.1", show_default=True)
@click.option("--seeds", default="0", show_default=True)
@click.option("--methods", default=";".join(_TABLE), help="Names of the tables, semicolons between.")
@click.option("--threads", default=1, show_default=True)
@click.option(
    "--ends", is_flag=True, help="A head from sums ends each run that one begins; a cell before it and after."
)
@click.option("--search-rounds", default=0, help="Of a run that tries a rate, ended as runs are; 0: the preset's.")
@click.option("--rates-of", type=click.Path(path_type=Path), default=None, help="File of cells whose searches stand.")
@_preset
@_cells
def run(
    out: Path, tasks: str, splits: str, seeds: str, methods: str, preset: str, cells: Path | None, **how: Any
) -> None:
    """Run the cells that are missing, seed by seed and method by method."""
    with locked(out):
        runner = Runner(Cells(cells or cells_of(preset)), out=out, preset=preset, **how)
        for seed in map(int, seeds.split(",")):
            for task in tasks.split(","):
                for name in methods.split(";"):
                    for split in splits.split(","):
                        runner.run((COMPARED | SYSTEMS)[name], task, split, seed)


@main.command()
@_preset
@_cells
def table(preset: str, cells: Path | None) -> None:
    """Print all tables."""
    found = Cells(cells or cells_of(preset))
    tasks = sorted({cell.task for cell in found}, key=lambda task: (_TASKS.index(task) if task in _TASKS else 9, task))
    columns = [(task, split) for task in tasks for split in ("dirichlet:0.5", "dirichlet:0.1")]
    every = [(task, split) for task in tasks for split in _SPLITS]
    methods = [*_TABLE, *SYSTEMS]
    for lines in (
        *(results(found, methods, task, ("dirichlet:0.5", "dirichlet:0.1")) for task in tasks),
        searched(found, methods, columns),
        costs(found, methods, columns),
        *(curve(found, task, _SPLITS, [FROZEN, "FedKRSO", *_BESIDE]) for task in tasks),
        *(paired(found, name, "FedKRSO", every) for name in (FULL, *_BESIDE[:-1])),
        *(paired(found, name + HEAD_AT_END, "FedKRSO" + HEAD_AT_END, every) for name in methods),
    ):
        if text := "\n".join(lines):
            print(text, end="\n\n")


@main.command()
@_preset
@_cells
def overview(preset: str, cells: Path | None) -> None:
    """Print what docs/results.md begins with."""
    found = Cells(cells or cells_of(preset))
    for told in (quality, spent, ahead):
        click.echo("\n".join(told(found, OVERVIEW)) + "\n")


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--task", required=True)
@click.option("--model", default=MODEL, show_default=True)
@click.option("--rates", default="3e-5,1e-4", show_default=True)
@click.option("--epochs", default=3, show_default=True)
@click.option("--rows", default=0, help="Of the training file at most; 0 for all.")
@click.option("--held", default=1000, show_default=True, help="Rows held out, and as many to choose a rate by.")
@click.option("--dev", default=0, help="Rows of the development set at most; 0 for all.")
@click.option("--max-length", default=128, show_default=True)
@click.option("--seed", default=0, show_default=True)
def central(
    data: Path,
    task: str,
    model: str,
    rates: str,
    epochs: int,
    rows: int,
    held: int,
    dev: int,
    max_length: int,
    seed: int,
) -> None:
    """Print what one machine with all rows comes to, epoch by epoch."""
    torch.set_num_threads(1)
    folder = resolve_model_folder(model, place="--model")
    print("| learning rate | epoch | tuning rows | held-out | development | seconds |\n|---|---|---|---|---|---|")
    for rate in map(float, rates.split(",")):
        run = Central(task, rate, epochs, rows, held, dev, max_length, seed=seed)
        for found in measured(run, data, folder):
            numbers = " | ".join(f"{found[name]:.3f}" for name in ("tune", "held", "dev"))
            print(f"| {rate:g} | {found['epoch']:.0f} | {numbers} | {found['seconds']:.0f} |", flush=True)


main.add_command(means)

if __name__ == "__main__":
    main()
