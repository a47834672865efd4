# SPDX-License-Identifier: Apache-2.0
"""Rows and whole folders of runs that nobody ran."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from research.runs.methods import parse_methods, settings_of
from research.runs.predictions import Part, Predictions, save_predictions
from research.runs.rows import Row, RunFiles, Setup


def setup(label: str = "fedkrso", **changes: Any) -> Setup:
    (named,) = parse_methods(label)
    fields: dict[str, Any] = {"task": "sst2", "split": "dirichlet:0.5", "seed": 0, "rounds": 3, "clients": 2, **changes}
    return Setup(label=label, method=settings_of(named, {}), **fields)


def row(of: Setup, number: int, held: float, **changes: Any) -> Row:
    fields: dict[str, Any] = {
        "label": of.label,
        "task": of.task,
        "split": of.split,
        "seed": of.seed,
        "dropout": of.dropout,
        "round": number,
        "dev": None if of.tune else held - 0.1,
        "held": held,
        "loss": 0.5,
        "metrics": {"held_accuracy": held},
        "train_loss": 0.4,
        "uplink_bytes": 1_000_000 * number,
        "downlink_bytes": 3_000_000 * number,
        "published_bytes": ({"whole": 1_500_000},),
        "peak_bytes": 400_000_000 + number,
        "accelerator_peak_bytes": None,
        "seconds": 9.0,
        "processor_seconds": 5.0,
        "clients": of.clients,
        "examples": 40,
        "digest": "0" * 64,
        **changes,
    }
    return Row(**fields)


def predictions(right: Sequence[bool]) -> Predictions:
    wanted = (np.arange(len(right)) % 2).astype(np.uint8)
    return Predictions(np.where(right, wanted, 1 - wanted).astype(np.uint8)[None], wanted)


def write_run(folder: Path, of: Setup, rows: Sequence[Row], said: dict[Part, Predictions] | None = None) -> RunFiles:
    """A finished run, or without predictions one that is not."""
    files = RunFiles(folder / of.place)
    files.folder.mkdir(parents=True)
    files.setup.write_bytes(msgspec.json.encode(of))
    for one in rows:
        files.add(one)
    if said is not None:
        save_predictions(files.predictions, said)
        files.finish()
    return files
