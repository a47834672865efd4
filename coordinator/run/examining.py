# SPDX-License-Identifier: Apache-2.0
"""What a job names, looked at before its run, by the processes that will read it then."""

from __future__ import annotations

import os

from coordinator.job import Job
from fedcore.config.fitting import require_fitting
from fedcore.config.models import find_model
from fedcore.config.templates import with_template
from fedcore.errors import FedkrsoError
from fedcore.weights.checkpoint import Checkpoint
from fedcore.worker.looking import Calibration, Look, look_at

__all__ = ["examined", "require_model"]


def require_model(job: Job, place: str) -> None:
    """Look at what can be seen of a job's model without a worker, in a moment.

    Args:
        job: As its file says it.
        place: Where it is written, for errors.

    Raises:
        ModelError: No such folder, no weights in it, or fewer words or positions than the job needs.
    """
    folder = find_model(job.model.folder, place=f"{place}: model.folder")
    if folder.is_dir():
        Checkpoint(folder)
    require_fitting(folder, max_length=job.task.max_length, virtual_tokens=job.method.virtual_tokens)


def examined(job: Job, place: str) -> tuple[str, ...]:
    """A line for each thing that can serve.

    Args:
        job: What the run is.
        place: Where the job is written, for errors about its keys.

    Raises:
        FedkrsoError: What cannot.
    """
    section, calibration, model = job.evaluation, job.calibration, job.model
    folder = find_model(model.folder, place=f"{place}: model.folder")
    # A GGUF file is imported when the run begins; until then it has no tokenizer and no names of tensors.
    there = folder.is_dir()
    look = Look(
        rows={"evaluation": section.data} if section is not None and section.here else {},
        task=with_template(job.task),
        calibration=None if calibration is None else Calibration(calibration.data, calibration.rows),
        model_folder=str(folder) if there else "",
        trained_tensors=model.trained_tensors if there and model.schema_file is None else None,
        adapter=job.method.adapter,
        metrics=() if section is None else section.metrics,
    )
    try:
        return look_at(look, os.environ)
    except FedkrsoError as error:
        if error.place in _KEYS:
            raise type(error)(error.message, place=f"{place}: {error.place}", remedy=error.remedy) from None
        raise


_KEYS = ("task.labels", "evaluation.metrics", "model.trained_tensors", "data.text_pair", "data.label")
"""Places that are keys of the job file, and not files of their own."""
