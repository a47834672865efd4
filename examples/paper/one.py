# SPDX-License-Identifier: Apache-2.0
"""One run in a process of its own: `python -m examples.paper.one SETUP.json DATA MODEL FOLDER`.

Its peak memory is its own, and killed it goes on where it was.

Rows are lines of `rows.jsonl` in FOLDER, the last one only if its state is there too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import torch

from edge_client.worker.lean import hide_optional_packages
from examples.paper.experiment import Experiment, Row, Setup
from examples.paper.splits import parse_split
from examples.paper.tasks import read_parts, task_by_name

__all__ = ["finished_rows", "main"]


def finished_rows(folder: Path) -> list[Row]:
    """The rounds that are done; a torn last line is none."""
    rows: list[Row] = []
    try:
        lines = (folder / "rows.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return rows
    for line in lines:
        try:
            rows.append(msgspec.json.decode(line, type=Row))
        except msgspec.DecodeError:
            break
    while rows and not (folder / f"state-{rows[-1].round}.npz").exists() and not (folder / "finished").exists():
        rows.pop()
    return rows


def main() -> None:
    """Run, or go on."""
    hide_optional_packages()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    setup = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Setup)
    data, model, folder = map(Path, sys.argv[2:])
    folder.mkdir(parents=True, exist_ok=True)
    task = task_by_name(setup.task)
    parts = read_parts(task, data, setup.max_length, most_train=setup.most_train, most_held=setup.most_held)
    on_gpu = torch.cuda.is_available()
    torch_device, dtype = (torch.device("cuda"), torch.bfloat16) if on_gpu else (torch.device("cpu"), torch.float32)
    done = finished_rows(folder)
    (folder / "rows.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in done))
    experiment = Experiment(setup, task, parts, parse_split(setup.split), model, folder, torch_device, dtype)
    with (folder / "rows.jsonl").open("ab", buffering=0) as file:
        for row in experiment.rows(done):
            file.write(msgspec.json.encode(row) + b"\n")
    (folder / "finished").touch()


if __name__ == "__main__":
    main()
