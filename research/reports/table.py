# SPDX-License-Identifier: Apache-2.0
"""All rows of a folder of runs as one table file, `table.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fedcore.errors import RunError
from fedcore.system.durable import write_durably
from research.runs.rows import Row, RunFiles, Setup, rounds_done

__all__ = ["Run", "load_runs", "write_table"]

_FIRST = ("method", "task", "split", "seed", "dropout", "learning_rate", "round", "held", "dev")
_LAST = (
    "loss",
    "train_loss",
    "uplink_bytes",
    "downlink_bytes",
    "peak_bytes",
    "accelerator_peak_bytes",
    "seconds",
    "processor_seconds",
    "clients",
    "examples",
    "digest",
)


@dataclass(frozen=True)
class Run:
    """A run with the measurements that are done; one at least."""

    setup: Setup
    rows: tuple[Row, ...]
    files: RunFiles

    @property
    def whole(self) -> bool:
        """Whether it came to its end."""
        return self.files.finished and rounds_done(self.rows) == self.setup.rounds


def load_runs(folder: Path) -> list[Run]:
    """All runs of a folder that have a row, without those for tuning.

    Raises:
        RunError: There are none, or a setup cannot be read.
    """
    found = []
    for path in sorted((folder / "runs").glob("*/*/*/setup.json")):
        try:
            setup = msgspec.json.decode(path.read_bytes(), type=Setup)
        except msgspec.DecodeError as error:
            raise RunError(
                f"not a setup: {error}", place=str(path), remedy="delete the run's folder and run it again"
            ) from None
        files = RunFiles(path.parent)
        rows = tuple(files.rows())
        if rows:
            found.append(Run(setup, rows, files))
    if not found:
        raise RunError(
            "no runs with a finished round", place=str(folder), remedy="fedkrso bench paper --out FOLDER makes them"
        )
    return found


def write_table(path: Path, runs: Sequence[Run]) -> None:
    """One line a measurement; bytes are of all clients since the run began, peaks and seconds of the rounds since the
    one before."""
    metrics = sorted({name for run in runs for row in run.rows for name in row.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIRST, *metrics, *_LAST])
    for run in runs:
        for row in run.rows:
            first = (
                row.label,
                row.task,
                row.split,
                row.seed,
                row.dropout,
                run.setup.method.learning_rate,
                row.round,
                row.held,
                row.dev,
            )
            writer.writerow(
                [*first, *(row.metrics.get(name) for name in metrics), *(getattr(row, name) for name in _LAST)]
            )
    write_durably(path, text.getvalue().encode())
