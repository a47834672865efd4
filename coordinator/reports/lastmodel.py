# SPDX-License-Identifier: Apache-2.0
"""A run's published model, the last one, the best, or another that is kept, read from its folder: what every export
begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from coordinator.job import Job
from coordinator.run.archive import Archive
from coordinator.run.prepare import Prepared, prepare
from coordinator.store.folder import RunFolder, stored_job
from coordinator.store.ledger import Ledger, RoundRow
from coordinator.store.places import open_ledger
from coordinator.store.standing import standing_of
from coordinator.store.statefile import load_state
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

__all__ = ["LastModel", "Which", "last_model", "require_empty", "which_round"]

Which = int | Literal["best", "last"]
"""Of a run's rounds: `last`, `best`, or its number."""


@dataclass(frozen=True)
class LastModel:
    """What a run has learned until a round, its last by default.

    Attributes:
        job: As it was started.
        round: Which.
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


def last_model(files: RunFolder, which: Which = "last") -> LastModel:
    """Read it.

    Args:
        files: The run's.
        which: `last`, `best` (by `evaluation.best_by` of the job), or a round.

    Raises:
        ConfigError: Nothing was measured, so that no round is the best.
        RunError: There is no such run, no round is finished yet, that round's state is not kept, or the base is
            damaged.
    """
    job = stored_job(files.root)
    ledger = open_ledger(files)
    try:
        rows = ledger.rounds()
        if not rows:
            raise RunError("no round is finished yet", place=str(files.root))
        last = rows[-1].round
        chosen = _chosen(which, rows, job, files)
        found = model_folder(job.model.folder, files.models, place="model.folder")
        prepared = prepare(job, found, files, ledger)
        plan = ledger.plan(last)
        if chosen != last:
            return _kept(files, ledger, prepared, chosen)
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
    training = server_half(job.method, prepared.artefact, job.head).training(last, job.seed)
    artefact = read_artefact(files.artefact, training, schema)
    return LastModel(job, last, schema, prepared.job.task, base, state, training, artefact)


def _chosen(which: Which, rows: list[RoundRow], job: Job, files: RunFolder) -> int:
    if which == "last":
        return rows[-1].round
    if which == "best":
        standing = standing_of(rows, job.evaluation)
        if standing is None or standing.best is None:
            remedy = "export the last one, or give the next job an [evaluation]"
            raise ConfigError("nothing was measured, so no round is the best", place=str(files.root), remedy=remedy)
        return standing.best
    return which


def _kept(files: RunFolder, ledger: Ledger, prepared: Prepared, chosen: int) -> LastModel:
    """An earlier round's model, made anew from the checkpoint and what is kept of what was published."""
    job, schema = prepared.job, prepared.schema
    archive, plan = Archive(files, ledger, job.round.keep_published, ()), ledger.plan(chosen)
    if plan is None or not archive.leading_to(chosen):
        there = sorted({version for version, kind in archive.objects if kind == "whole"})
        remedy = f"there are {', '.join(map(str, there))}; round.keep_published keeps more"
        raise RunError(f"the state of round {chosen} is not kept", place=str(files.root), remedy=remedy)
    base = Base(Checkpoint(prepared.model_folder), schema, job.model.base, files.exported_base)
    if base.generation != plan.training.generation:
        archive.rebuild(base, chosen)
    training = plan.training
    state = PublishedState.read(files.published_state(chosen, "whole"), training.shapes(schema))
    artefact = read_artefact(files.artefact, training, schema)
    return LastModel(job, chosen, schema, prepared.job.task, base, state, training, artefact)


def which_round(word: str) -> Which:
    """A round as somebody typed it.

    Raises:
        ConfigError: Neither `last` nor `best` nor a number.

    Example:
        >>> which_round("best"), which_round("3")
        ('best', 3)
    """
    match word:
        case "last" | "best":
            return word
        case _ if word.isdecimal() and 0 < len(word) < 10:
            return int(word)
    raise ConfigError(f"no round {word!r}", place="--round", remedy="last, best, or a number")


def require_empty(folder: Path, *, overwrite: bool = False) -> None:
    """Check that nothing would be lost.

    Raises:
        ConfigError: The folder holds something already.
    """
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise ConfigError("the folder is not empty", place=str(folder), remedy="name a new one, or --overwrite")
