# SPDX-License-Identifier: Apache-2.0
"""One run in a process of its own: `python -m research.one FOLDER DATA MODEL`, where FOLDER holds its `setup.json`.

Its peak memory is its own. Killed at any moment it goes on from its last round, and ends with the same rows but for
times and memory."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

from edge_client.worker.programs.lean import hide_optional_packages
from fedcore.errors import FedkrsoError
from research.data.splits import parse_split
from research.data.tasks import read_parts, task_by_name
from research.experiment import Experiment
from research.runs.rows import RunFiles, rounds_done

__all__ = ["main", "run"]


def run(folder: Path, data: Path, model: Path) -> None:
    """Run, or go on.

    Raises:
        FedkrsoError: It cannot be run; a later call goes on from the rounds that are done.
    """
    files = RunFiles(folder)
    setup = files.read_setup()
    if rounds_done(files.rows()) < setup.rounds:
        task = task_by_name(setup.task)
        sizes = {"most_train": setup.most_train, "most_held": setup.most_held, "most_dev": setup.most_dev}
        parts = read_parts(task, data, setup.max_length, **sizes)
        on_gpu = torch.cuda.is_available()
        torch_device, dtype = (
            (torch.device("cuda"), torch.bfloat16) if on_gpu else (torch.device("cpu"), getattr(torch, setup.compute))
        )
        for row in Experiment(setup, task, parts, parse_split(setup.split), model, files, torch_device, dtype).rows():
            files.add(row)
    files.finish()
    shutil.rmtree(files.scratch, ignore_errors=True)


def main() -> None:
    """The program; a refusal is one line and its exit code."""
    hide_optional_packages()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        run(*map(Path, sys.argv[1:]))
    except FedkrsoError as error:
        sys.stderr.write(f"error: {error.one_line()}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
