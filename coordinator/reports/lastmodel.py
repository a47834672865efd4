# SPDX-License-Identifier: Apache-2.0
"""A run's last published model, read from its folder: what every export begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.job import Job
from coordinator.run.prepare import prepare
from coordinator.store.folder import RunFolder, load_state, stored_job
from coordinator.store.ledger import SqliteLedger
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, RunError
from fedcore.methods import server_half
from fedcore.model.base import Base
from fedcore.model.state import PublishedState
from fedcore.round.artefact import read_artefact
from fedcore.round.training import Training
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.schema import ModelSchema
from fedcore.worker.imported import model_folder

__all__ = ["LastModel", "last_model", "require_empty"]


@dataclass(frozen=True)
class LastModel:
    """What a run has learned until its last round.

    Attributes:
        job: As it was started.
        round: The last that is published.
        schema: What of the model is trained.
        task: With its labels as a list.
        base: The base that the state is on.
        state: What was learned since the last merge.
        training: Of the round's plan.
        artefact: What the run's artefact holds, where it has one.
    """

    job: Job
    round: int
    schema: ModelSchema
    task: TaskSection
    base: Base
    state: PublishedState
    training: Training
    artefact: Any


def last_model(files: RunFolder) -> LastModel:
    """Read it.

    Raises:
        RunError: There is no such run, no round is finished yet, or the base is damaged.
    """
    job = stored_job(files.root)
    ledger = SqliteLedger(files.ledger)
    try:
        rows = ledger.rounds()
        if not rows:
            raise RunError("no round is finished yet", place=str(files.root))
        last = rows[-1].round
        found = model_folder(job.model.folder, files.models, place="model.folder")
        prepared = prepare(job, found, files, ledger)
        plan = ledger.plan(last)
    finally:
        ledger.close()
    schema = prepared.schema
    base = Base(Checkpoint(prepared.model_folder), schema, job.model.base, files.base)
    state = load_state(files.state(last)).publish()
    if plan is not None and base.generation < plan.training.generation:
        remedy = f"fedkrso coordinator resume {job.run} makes it anew"
        raise RunError("the merged base is damaged", place=str(files.base), remedy=remedy)
    if plan is not None and base.generation > plan.training.generation:
        # The next round is open, and what this one learned is in the base already.
        state = state.refreshed(plan.training, schema)
    training = server_half(job.method, prepared.artefact).training(last, job.seed)
    artefact = read_artefact(files.artefact, training, schema)
    return LastModel(job, last, schema, prepared.job.task, base, state, training, artefact)


def require_empty(folder: Path, *, overwrite: bool = False) -> None:
    """Check that nothing would be lost.

    Raises:
        ConfigError: The folder holds something already.
    """
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise ConfigError("the folder is not empty", place=str(folder), remedy="name a new one, or --overwrite")
