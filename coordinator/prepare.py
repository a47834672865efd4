# SPDX-License-Identifier: Apache-2.0
"""What has to be known of a job's model before its first round, found out once and kept in the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from coordinator.evaluator import ask_worker
from coordinator.files import RunFolder
from coordinator.job import Job
from coordinator.ledger import Ledger
from fedcore.schema import ModelSchema
from fedcore.worker import Describe, Described

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A job with what was found out about its model."""

    job: Job
    schema: ModelSchema
    model_folder: Path


def prepare(job: Job, model_folder: Path, folder: RunFolder, ledger: Ledger) -> Prepared:
    """Find out, once per run, what of the model is trained, and the task's labels.

    Raises:
        FedkrsoError: The model or the task cannot serve.
    """
    task, schema = ledger.fact("task", type(job.task)), ledger.fact("schema", ModelSchema)
    if task is None or schema is None:
        if job.model.schema_file is not None:
            described = msgspec.json.decode(Path(job.model.schema_file).read_bytes(), type=Described)
        else:
            command = Describe(str(model_folder), job.task, job.model.trained_tensors)
            answer = ask_worker(command, folder.evaluator / "describe.log")
            assert isinstance(answer, Described)
            described = answer
        task, schema = described.task, described.model_schema
        ledger.put_fact("task", task)
        ledger.put_fact("schema", schema)
    return Prepared(msgspec.structs.replace(job, task=task), schema, model_folder)
