# SPDX-License-Identifier: Apache-2.0
"""Files that a worker makes on command, whatever model it holds: the run's artefact, what a round comes to, and models
from and to GGUF."""

from __future__ import annotations

from pathlib import Path

import torch

from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.reading import load_texts
from edge_client.worker.data.tasks import encode
from edge_client.worker.methods.artefact import ArtefactSources, make_artefact
from fedcore.model.base import Base
from fedcore.registry import resolve
from fedcore.weights.checkpoint import Checkpoint
from fedcore.worker.exchange import Imported, Written
from fedcore.worker.messages import ArtefactMade, MakeArtefact
from fedcore.worker.work import Work, Worked

__all__ = ["artefact_made", "imported", "worked", "written_gguf"]


def artefact_made(command: MakeArtefact) -> ArtefactMade:
    """Make the run's artefact."""
    torch.set_num_threads(command.threads)
    folder, task, texts = Path(command.model_folder), command.task, []
    if command.data is not None:
        texts = encode(load_texts(command.data, command.rows, task), task, read_tokenizer(folder))
    base = Base(Checkpoint(folder), command.model_schema, command.base_kind, Path(command.folder))
    cpu = torch.device("cpu")
    sources = ArtefactSources(training=command.training, base=base, task=task, texts=texts, torch_device=cpu)
    make_artefact(Path(command.path), sources)
    return ArtefactMade(len(texts), sum(len(one.ids) for one in texts))


def worked(command: Work) -> Worked:
    """Make a round's one update."""
    torch.set_num_threads(command.threads)
    training = command.plan.training
    found: Worked = resolve(training.work, place=f"method {training.method}")(command)
    return found


def imported(path: Path, folder: Path) -> Imported:
    """Write a GGUF file's model as a folder."""
    from edge_client.worker.exchange.importing import import_gguf

    return Imported(import_gguf(path, folder))


def written_gguf(folder: Path, path: Path, numbers: str, description: str) -> Written:
    """Write a folder's model as a GGUF file."""
    from edge_client.worker.exchange.exporting import export_gguf

    return Written(export_gguf(folder, path, numbers, description=description))
