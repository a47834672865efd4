# SPDX-License-Identifier: Apache-2.0
"""What an emulator of a causal model is worth: Shakespeare's speeches with stories260K, one block at each end trained
around a middle of three, of which one is kept.

    python -m benchmarks.offsite.causal --data DATA --model stories260K --out FOLDER

Rows have the names of `python -m benchmarks.offsite`; *untouched* is the model as it comes, and nothing is aligned.
Whole speakers are dealt to four nodes; perplexity on 300 speeches that nobody trains on, after each round."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from benchmarks.offsite.training import NODES, settings_of, tune_nodes
from coordinator.offsite.emulator import write_emulator
from coordinator.offsite.plugin import plug_in
from edge_client.worker.answering.finished import finished
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import encode
from edge_client.worker.train.evaluate import measures, scores_of
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import TaskSection
from fedcore.data.splits import deal
from fedcore.weights.checkpoint import Checkpoint
from research.data.splits import parse_split
from research.data.tasks import read_parts, task_by_name

_HELD, _MAX_LENGTH = 300, 64


def _perplexity(folder: Path, task: TaskSection, rows: Sequence[Example]) -> float:
    """Of a folder's model, with its weights in 8 bits."""
    tokenizer = read_tokenizer(folder)
    with tempfile.TemporaryDirectory() as scratch:
        model = finished(folder, Path(scratch), tokenizer).model
        encoded = encode(rows, task, tokenizer)
        scores = scores_of(model, encoded, task, model.pad_id, torch.device("cpu"))
    return math.exp(measures(scores, encoded, task)[1])


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--model", default="stories260K", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Models stay here.")
@click.option("--rounds", default=2, show_default=True)
@click.option("--steps", default=20, show_default=True, help="Of a round, of 8 speeches each.")
@click.option("--rates", default="1e-3,3e-3,1e-2", show_default=True)
@click.option("--middle", default=1, show_default=True, help="Blocks that the emulator keeps between its ends.")
def main(data: Path, model: str, out: Path, rounds: int, steps: int, rates: str, middle: int) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    full, chosen = resolve_model_folder(model, place="--model"), task_by_name("shakespeare")
    blocks = Checkpoint(full).config["num_hidden_layers"]
    parts = read_parts(chosen, data, _MAX_LENGTH, most_train=0, most_held=_HELD)
    dealt = deal([row.group for row in parts.train], NODES, parse_split("natural"), 0, least=8)
    nodes = {f"n{number}": [parts.train[index].example for index in part] for number, part in enumerate(dealt)}
    print("| model | blocks | trained blocks | rate | perplexity after each round | seconds |")
    print("|---|---|---|---|---|---|")
    print(f"| untouched | {blocks} | 0 | | {_perplexity(full, parts.section, parts.held):.1f} | |", flush=True)
    for name, kept in (("whole", None), ("emulator", middle), ("bound", blocks - 2)):
        folder = full
        if kept is not None:
            folder = out / f"{name}-base"
            shutil.rmtree(folder, ignore_errors=True)
            write_emulator(full, folder, first=1, last=1, middle=kept)
        for rate in rates.split(","):
            started = time.process_time()
            shutil.rmtree(out / name, ignore_errors=True)
            method = settings_of("fedkrso", learning_rate=float(rate), steps=steps, batch_size=8)
            found = tune_nodes(folder, out / name, parts.section, nodes, parts.held, rounds, "random", method)
            by_round = ", ".join(f"{math.exp(one.loss):.1f}" for one in found)
            count, trained = Checkpoint(folder).config["num_hidden_layers"], blocks if kept is None else 2
            seconds = time.process_time() - started
            print(f"| {name} | {count} | {trained} | {rate} | {by_round} | {seconds:.0f} |", flush=True)
            if name == "emulator":
                shutil.rmtree(out / "plugged", ignore_errors=True)
                plug_in(folder, out / name, full, out / "plugged")
                worth = _perplexity(out / "plugged", parts.section, parts.held)
                print(f"| plugged in | {blocks} | 2 | {rate} | {worth:.1f} | |", flush=True)


if __name__ == "__main__":
    main()
