# SPDX-License-Identifier: Apache-2.0
"""A run's model as a GGUF file, which llama.cpp loads: written by a worker process, which knows the format."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from coordinator.reports.card import description_of
from coordinator.reports.export import export_model
from coordinator.reports.lastmodel import Which, last_model
from coordinator.store.folder import RunFolder
from fedcore.config.tasks import task_of
from fedcore.errors import ConfigError
from fedcore.worker.asking import ask_worker
from fedcore.worker.exchange import WriteGguf, Written

__all__ = ["GgufNumbers", "export_gguf"]

GgufNumbers = Literal["q8_0", "f16", "f32"]
"""What the weights of a GGUF file are stored in."""


def export_gguf(
    files: RunFolder,
    path: Path,
    numbers: GgufNumbers = "q8_0",
    *,
    overwrite: bool = False,
    which: Which = "last",
) -> str:
    """Write a run's model to a GGUF file, with tokenizer and chat template; what it is, in words.

    Args:
        files: The run's.
        path: Of the file.
        numbers: What its weights are stored in.
        overwrite: Also in place of something.
        which: `last`, `best` or a round's number; the last two are always there, and the best.

    Raises:
        ConfigError: Something is there already, the task has a head that the format has no place for, nodes have
            models of their own, or the package gguf is not installed.
        ModelError: An architecture that no GGUF file is written for; it is named.
        RunError: No round is finished yet.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigError("something is there already", place=str(path), remedy="name a new file, or --overwrite")
    last = last_model(files, which)
    if task_of(last.task).outputs() is not None:
        raise ConfigError(
            f"a GGUF file has no place for the head of {last.task.kind}",
            place="task.kind",
            remedy="export a folder, or an adapter",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.scratch() as scratch:
        folder = scratch / "model"
        export_model(last.base, last.state, last.schema, last.task, last.training, folder, last.artefact)
        command = WriteGguf(str(folder), str(path.absolute()), numbers, description_of(last))
        answer = ask_worker(command, scratch / "worker.log")
    assert isinstance(answer, Written)
    return f"{answer.words}, round {last.round}"
