# SPDX-License-Identifier: Apache-2.0
"""A metric of one's own, and a callback that ends a run once it is good enough.

    python -m examples.own_metric rows.csv held-out.csv path/to/model

The evaluation process imports the metric by its name, `examples.own_metric:worst_recall`; an installed package can give
it a short one with `register_metric`."""

from __future__ import annotations

import csv
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from examples.my_csv import NODES, clients, job
from fedkrso import Coordinator, EvaluationSection, LocalBroker, Result, RoundRow

__all__ = ["tune_until", "worst_recall"]


def worst_recall(predictions: NDArray[Any], targets: NDArray[Any]) -> float:
    """Of the label that is found worst: the share of its texts that are found.

    Example:
        >>> worst_recall(np.array([0, 0, 1, 0]), np.array([0, 0, 1, 1]))
        0.5
    """
    return min(float((predictions[targets == label] == label).mean()) for label in np.unique(targets))


def tune_until(enough: float, data: Path, held_out: Path, model: str, folder: Path) -> Result:
    """Tune a model until every label is found often enough."""
    with data.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    measured = EvaluationSection(source=str(held_out.absolute()), metrics=("examples.own_metric:worst_recall",))

    def look(row: RoundRow) -> None:
        print(f"round {row.round}: {row.metrics['worst_recall']:.2f} of the worst label")
        if row.metrics["worst_recall"] >= enough:
            leader.stop()

    with LocalBroker(folder / "broker", ["coordinator", *NODES]) as broker, ExitStack() as nodes:
        what = msgspec.structs.replace(job("own-metric", rows, model, broker), evaluation=measured)
        leader = Coordinator(what, runs=folder / "runs", on_round=look)
        for client in clients(what.run, rows, model, broker, folder):
            nodes.enter_context(client)
        return leader.run()


if __name__ == "__main__":
    print(tune_until(0.9, Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path("own-metric")).accuracy)
