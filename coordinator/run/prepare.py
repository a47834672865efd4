# SPDX-License-Identifier: Apache-2.0
"""What has to be known of a job's model before its first round, found out once and kept in the ledger."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from coordinator.job import Job
from coordinator.run.evaluator import ask_worker
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import Ledger
from fedcore.errors import RunError
from fedcore.methods import server_half
from fedcore.system.durable import sha256_of
from fedcore.weights.schema import ModelSchema
from fedcore.worker.messages import Describe, Described, FindInformedRows

__all__ = ["Prepared", "prepare"]

_INFORMED_SECONDS = 3600.0


@dataclass(frozen=True)
class Prepared:
    """A job with what was found out about its model."""

    job: Job
    schema: ModelSchema
    model_folder: Path
    informed: str = ""
    """SHA-256 of the run's informed rows, where its method has some; their file is in the run's folder."""


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
    job = msgspec.structs.replace(job, task=task)
    return Prepared(job, schema, model_folder, _informed(job, schema, model_folder, folder, ledger))


def _informed(job: Job, schema: ModelSchema, model_folder: Path, folder: RunFolder, ledger: Ledger) -> str:
    """Have the run's informed rows: made once, and found again as they were."""
    training = server_half(job.method).training(1, job.seed)
    if not training.informed_subspaces:
        return ""
    known = ledger.fact("informed", str)
    if known is None or not folder.informed.exists() or sha256_of(folder.informed) != known:
        assert job.calibration is not None, "the job was checked"
        command = FindInformedRows(
            model_folder=str(model_folder),
            task=job.task,
            model_schema=schema,
            base_kind=job.model.base,
            data=job.calibration.data,
            rows=job.calibration.rows,
            subspaces=training.informed_subspaces,
            rank=training.rank,
            pool=len(training.seeds),
            folder=str(folder.evaluator / "informed"),
            path=str(folder.informed),
            threads=max(1, (os.cpu_count() or 1) // 2),
        )
        ask_worker(command, folder.evaluator / "informed.log", timeout_seconds=_INFORMED_SECONDS)
    found = sha256_of(folder.informed)
    if known not in (None, found):
        raise RunError(
            "the informed rows are not those that the run began with, and this machine makes others",
            place=str(folder.informed),
            remedy="put the file back from a copy, or a node's informed.bin",
        )
    ledger.put_fact("informed", found)
    return found
