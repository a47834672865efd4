# SPDX-License-Identifier: Apache-2.0
"""My CSV file and my model, in Python: two nodes and their coordinator in one program, over a broker of its own.

    python -m examples.my_csv reviews.csv path/to/model

The file has the columns `text` and `label`. In earnest a `Client` runs on a device, the `Coordinator` on a server."""

from __future__ import annotations

import csv
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedkrso import Client, Coordinator, Job, LocalBroker, ModelSection, Result, RoundSection, TaskSection

__all__ = ["NODES", "clients", "job", "tune"]

NODES = ("alice", "bob")


def job(run: str, rows: list[dict[str, str]], model: str, broker: LocalBroker) -> Job:
    """What is learned: the labels that the rows have, in two rounds with everybody."""
    labels = tuple(sorted({row["label"] for row in rows}))
    return Job(
        run=run,
        model=ModelSection(folder=model),
        task=TaskSection(kind="text-classification", labels=labels, max_length=48),
        round=RoundSection(rounds=2, min_nodes=len(NODES), quorum=len(NODES)),
        broker=broker.section("coordinator"),
    )


def clients(run: str, rows: list[dict[str, str]], model: str, broker: LocalBroker, folder: Path) -> list[Client]:
    """Every node with its part of the rows; each trains in a process of its own."""
    same: dict[str, Any] = {"run": run, "model_folder": model, "memory_budget": "3 GiB", "threads": 1}
    return [
        Client(name, broker=broker.section(name), folder=str(folder / name), data=rows[index :: len(NODES)], **same)
        for index, name in enumerate(NODES)
    ]


def tune(data: Path, model: str, folder: Path) -> Result:
    """Tune a model on a file's rows; every fifth is held out and measures it."""
    with data.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    held_out, mine = rows[::5], [row for index, row in enumerate(rows) if index % 5]
    with LocalBroker(folder / "broker", ["coordinator", *NODES]) as broker, ExitStack() as nodes:
        what = job("my-csv", rows, model, broker)
        leader = Coordinator(what, runs=folder / "runs", evaluation=held_out, on_round=lambda row: print(row.accuracy))
        for client in clients(what.run, mine, model, broker, folder):
            nodes.enter_context(client)
        result = leader.run()
    result.export(folder / "tuned")
    return result


if __name__ == "__main__":
    print(tune(Path(sys.argv[1]), sys.argv[2], Path("my-csv")).report)
