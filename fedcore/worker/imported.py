# SPDX-License-Identifier: Apache-2.0
"""A model that a job or node file names as a GGUF file: made a Hugging Face folder once, and found again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fedcore.config.models import ModelSource, find_model, read_source
from fedcore.errors import FedkrsoError
from fedcore.system.durable import flush_files, flush_folder, sha256_of
from fedcore.system.locks import turn
from fedcore.worker.asking import ask_worker
from fedcore.worker.exchange import ImportModel

__all__ = ["imported_models", "model_folder"]

_FORM: Final = ModelSource.__struct_defaults__[-1]
_HALF: Final = ".half"


def model_folder(text: str, cache: Path, *, place: str, tell: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of a model, also where what is named is a GGUF file.

    A file is imported into `cache` under its SHA-256, by a worker process, so that whoever asks needs no torch; all
    machines make the same weights of it, bit by bit. The folder gets its name when all of it is on the disk: a kill or
    a power cut in the middle leaves nothing that would be taken for a model.

    Args:
        text: As a job or node file has it (`fedcore.config.models.find_model`).
        cache: Where imported models lie; it may serve many processes.
        place: Where the text is written, for errors.
        tell: Hears, in a line each, that an import begins and what came of it.

    Raises:
        ModelError: No such model, or a file that cannot be understood.
        ConfigError: The worker lacks the package gguf.
        WorkerError: The process ended before it had answered.
    """
    found = find_model(text, place=place)
    if found.is_dir():
        return found
    digest = sha256_of(found)
    folder = cache / digest
    if _is_whole(folder):
        return folder
    with turn(cache):
        # Whoever had the turn before may have imported it.
        if _is_whole(folder):
            return folder
        half = cache / (digest + _HALF)
        for path in (half, folder):
            shutil.rmtree(path, ignore_errors=True)
        tell(f"importing {found}, once; it is kept in {folder}")
        try:
            ask_worker(ImportModel(str(found), str(half)), cache / "import.log")
        except FedkrsoError:
            shutil.rmtree(half, ignore_errors=True)
            raise
        flush_files(half)
        half.rename(folder)
        flush_folder(cache)
    source = read_source(folder)
    tell(f"imported {source.words if source is not None else found}")
    return folder


def imported_models(node_folder: Path) -> Path:
    """Where a node keeps what it imported: in its own folder, which is all that a service may write into."""
    return node_folder / "models"


def _is_whole(folder: Path) -> bool:
    source = read_source(folder)
    return source is not None and source.form == _FORM
