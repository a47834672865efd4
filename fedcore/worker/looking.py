# SPDX-License-Identifier: Apache-2.0
"""A look at data and model before a run, in a process of its own: by the worker's own reader, since a user's function
may import or do anything, and whoever asks needs no torch."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

import msgspec

from fedcore.config.adapters import AnyAdapter
from fedcore.config.sections import DataSection, TaskSection
from fedcore.errors import DataError, WorkerError
from fedcore.system.processes import worker_python
from fedcore.worker.failures import error_of
from fedcore.worker.messages import Failed

__all__ = ["Calibration", "Look", "Seen", "look_at"]


class Calibration(msgspec.Struct, frozen=True):
    """Texts that the run's artefact is made from."""

    data: DataSection
    rows: int


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be looked at; what is left out is not."""

    rows: dict[str, DataSection] = {}
    """Data, by what they are called: `data`, `evaluation`."""
    task: TaskSection | None = None
    """What is to be learned of them; a node's file does not say it."""
    calibration: Calibration | None = None
    model_folder: str = ""
    """The checkpoint, with whose tokenizer the rows are read too."""
    trained_tensors: tuple[str, ...] | None = None
    """Patterns, of which each must match a tensor of the checkpoint."""
    adapter: AnyAdapter | None = None
    """Of the job's method."""
    metrics: tuple[str, ...] = ()
    """Of `[evaluation]`."""
    compared: bool = False
    """Compare the model, built for the task, with plain transformers."""


class Seen(msgspec.Struct, frozen=True):
    """What was found, a line each; or why it cannot serve."""

    lines: tuple[str, ...]
    failed: Failed | None = None


def look_at(look: Look, environment: Mapping[str, str], *, timeout_seconds: float = 300.0) -> tuple[str, ...]:
    """What a worker finds, a line for each thing.

    Args:
        look: What it looks at.
        environment: Of the process; it may name the worker's interpreter.
        timeout_seconds: After which nothing is waited for.

    Raises:
        FedkrsoError: What training would refuse, in the same words.
    """
    command = [worker_python(environment), "-m", "edge_client.worker.programs.look"]
    asked = msgspec.json.encode(look).decode()
    place = next((section.source for section in look.rows.values()), look.model_folder)
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            input=asked,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"no answer within {timeout_seconds:.0f} s", place=place) from None
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        seen = msgspec.json.decode(last, type=Seen)
    except msgspec.DecodeError:
        said = (done.stderr.strip().splitlines() or [f"the reader ended with {done.returncode}"])[-1]
        remedy = "pip install 'fedkrso[train]'" if "ModuleNotFoundError" in said else "the reader failed"
        raise WorkerError(said, place=place, remedy=remedy) from None
    if seen.failed is not None:
        raise error_of(seen.failed)
    return seen.lines
