# SPDX-License-Identifier: Apache-2.0
"""What a model is worth to its own client, of runs of `fedkrso bench paper` on a classification:

    python -m benchmarks.heads.own_rows OUT --data DATA

Where each client has a model of its own (SpaFL, FedPepTAO), a client asks of it what it trained on: texts of its own
labels in its own parts. So each held-out row counts as often as the client has its label, for methods with one model
for all as well; `labels alone` is what a client gets that always says its commonest label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from fedcore.data.splits import deal
from research.data.splits import LEAST_EXAMPLES, parse_split
from research.data.tasks import read_parts, task_by_name
from research.runs.predictions import PARTS, Predictions, load_predictions
from research.runs.rows import RunFiles, Setup


@click.command()
@click.argument("out", type=click.Path(path_type=Path, exists=True))
@click.option("--data", type=click.Path(path_type=Path), default=Path("data"))
def main(out: Path, data: Path) -> None:
    """Print a line for each finished run."""
    print("| run | held-out, own labels | all alike | development, own labels | all alike | labels alone |")
    print("|---|---|---|---|---|---|")
    for setup, files in _finished(out):
        shares = _shares(setup, data)
        said = load_predictions(files.predictions)
        cells = [f"{value:.3f}" for part in PARTS for value in _both(said[part], shares)]
        print(f"| {setup.name} | {' | '.join(cells)} | {shares.max(axis=1).mean():.3f} |", flush=True)


def _finished(out: Path) -> Iterator[tuple[Setup, RunFiles]]:
    for path in sorted(out.glob("runs/*/*/*/setup.json")):
        files = RunFiles(path.parent)
        if files.finished:
            yield msgspec.json.decode(path.read_bytes(), type=Setup), files


def _shares(setup: Setup, data: Path) -> NDArray[np.float64]:
    """Part of each label among each client's rows, (clients, labels)."""
    parts = read_parts(
        task_by_name(setup.task), data, setup.max_length, most_train=setup.most_train, most_held=setup.most_held
    )
    groups = [row.group for row in parts.train]
    dealt = deal(groups, setup.clients, parse_split(setup.split), setup.seed, least=LEAST_EXAMPLES)
    labels = [row.example.target for row in parts.train]
    counts = [Counter(labels[index] for index in part) for part in dealt]
    return np.array([[count[label] / sum(count.values()) for label in sorted(set(labels))] for count in counts])  # type: ignore[type-var]


def _both(said: Predictions, shares: NDArray[np.float64]) -> tuple[float, float]:
    """Mean over clients of the accuracy of its model, on rows weighted as its own, and on all alike."""
    right = said.said == said.wanted
    recall = np.stack([right[:, said.wanted == label].mean(axis=1) for label in range(shares.shape[1])], axis=1)
    return float((recall * shares).sum(axis=1).mean()), float(right.mean())


if __name__ == "__main__":
    main()
