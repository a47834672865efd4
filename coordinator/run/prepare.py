# SPDX-License-Identifier: Apache-2.0
"""What has to be known of a job's model before its first round, found out once and kept in the ledger."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from coordinator.channel.errors import channel_words
from coordinator.job import Job
from coordinator.run.private import Private, private_run
from coordinator.store.folder import RunFolder, write_job
from coordinator.store.ledger import Ledger
from coordinator.sums.adder import adder_of
from fedcore.config.sections import HeadSection, TaskSection
from fedcore.config.tasks import CHAT_KEYS
from fedcore.config.templates import with_template
from fedcore.errors import ConfigError, RunError
from fedcore.methods import server_half
from fedcore.methods.beside.heads import settled_again
from fedcore.methods.fed3r import require_solvable, settled_head
from fedcore.model.update import Adder, add_updates
from fedcore.system.durable import sha256_of
from fedcore.weights.schema import ModelSchema
from fedcore.worker.asking import ask_worker
from fedcore.worker.messages import Describe, Described, MakeArtefact

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A job with what was found out about its model."""

    job: Job
    schema: ModelSchema
    model_folder: Path
    artefact: str = ""
    """SHA-256 of the run's artefact, where its method asks for one; the file is in the run's folder."""
    notes: tuple[str, ...] = ()
    """What a person should know of the model, of privacy, and of a channel."""
    private: Private | None = None
    """What is promised of privacy; None for nothing. The job is then as it is led: with as many rounds as may be, and
    updates bounded by the clip."""
    adder: Adder = add_updates
    """Who adds up a round's updates."""


def prepare(
    job: Job,
    model_folder: Path,
    folder: RunFolder,
    ledger: Ledger,
    tell: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Find out, once per run, what of the model is trained, and the task's labels.

    Args:
        job: As its file says it.
        model_folder: Of the model's weights.
        folder: The run's.
        ledger: The run's; what was found out before is not found out again.
        tell: Gets a line before each piece of work that takes a while.

    Raises:
        FedkrsoError: The model or the task cannot serve, or the head that the job wants cannot be made.
    """
    task, schema = ledger.fact("task", type(job.task)), ledger.fact("schema", ModelSchema)
    if task is not None and schema is not None and job.head.start == "auto":
        # Begun by a version that knew of no other start: rounds of two kinds would be mixed.
        job = msgspec.structs.replace(job, head=HeadSection(start="random"))
    if task is None or schema is None:
        if job.model.schema_file is not None:
            described = _described(Path(job.model.schema_file))
            _require_adapter(job, described.model_schema)
            # The file is about the model: what is said of conversations is the job's alone.
            _require_pooling(job, described.task)
            chat = {key: getattr(with_template(job.task), key) for key in CHAT_KEYS}
            described = msgspec.structs.replace(described, task=msgspec.structs.replace(described.task, **chat))
        else:
            tell("looking at the model")
            command = Describe(
                str(model_folder), with_template(job.task), job.model.trained_tensors, job.method.adapter
            )
            answer = ask_worker(command, folder.evaluator / "describe.log")
            assert isinstance(answer, Described)
            described = answer
        task, schema = described.task, described.model_schema
        job = _settled(job, task, schema, folder)
        ledger.put_fact("notes", described.notes)
        ledger.put_fact("task", task)
        ledger.put_fact("schema", schema)
    notes = ledger.fact("notes", tuple[str, ...]) or ()
    job = msgspec.structs.replace(job, task=task)
    require_solvable(server_half(job.method, head=job.head).training(1, job.seed), schema)
    job, private, told = private_run(job, ledger)
    artefact = _artefact(job, schema, model_folder, folder, ledger, tell)
    disturbed = () if job.channel is None else (channel_words(job.channel, job.seed),)
    adder = adder_of(job.aggregation, folder, tell)
    return Prepared(job, schema, model_folder, artefact, (*notes, *told, *disturbed), private, adder)


def _described(path: Path) -> Described:
    """What `fedkrso model describe` has written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Described)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        remedy = f"fedkrso model describe MODEL > {path}"
        raise ConfigError(f"cannot be read: {words}", place=f"model.schema_file: {path}", remedy=remedy) from None


def _settled(job: Job, task: TaskSection, schema: ModelSchema, folder: RunFolder) -> Job:
    """The job with what `auto` means for its head, and with how its learning rates fall, kept as the run's own: whoever
    goes on with it, or looks at it, finds what it began with."""
    training = server_half(job.method).training(1, job.seed)
    # Noise on sums for a head is not counted with that of rounds, and a few bits behind the point do not hold them.
    secure = job.secure_aggregation
    hidden = job.privacy.noise is not None or (secure is not None and not secure.holds_moments)
    wanted = msgspec.structs.replace(job.head, start="random") if hidden and job.head.start == "auto" else job.head
    head = settled_head(wanted, task, training, job.safety.combining(), schema, job.round.rounds)
    head = settled_again(head, job.round.rounds, buffered=job.round.buffered, averaged=job.round.average_last > 1)
    own = job.round.rounds - head.heads_until(job.round.rounds)
    found = msgspec.structs.replace(job, head=head, method=job.method.settled(own))
    if found != job:
        write_job(folder, found)
    return found


def _require_pooling(job: Job, found: TaskSection) -> None:
    """Check that a file about the model is about the head that the job wants."""
    wanted = job.task.pooling
    if wanted not in ("auto", found.pooling) and not (wanted == "model" and found.pooling == "auto"):
        raise ConfigError(
            f"the job wants {wanted!r}, and {job.model.schema_file} was made for {found.pooling!r}",
            place="task.pooling",
            remedy=f"make the file anew: fedkrso model describe --pooling {wanted}",
        )


def _require_adapter(job: Job, schema: ModelSchema) -> None:
    """Check that a file about the model has an adapter's tensors, where the method trains one."""
    if (adapter := job.method.adapter) is not None and not schema.adapter:
        words = msgspec.json.encode(adapter).decode()
        raise ConfigError(
            f"{job.model.schema_file} was made for no adapter",
            place="model.schema_file",
            remedy=f"make the file anew: fedkrso model describe --peft '{words}'",
        )


def _artefact(
    job: Job, schema: ModelSchema, model_folder: Path, folder: RunFolder, ledger: Ledger, tell: Callable[[str], None]
) -> str:
    """Have the run's artefact: made once, and found again as it was."""
    training = server_half(job.method).training(1, job.seed)
    kind = training.artefact_kind
    if kind is None:
        return ""
    known = ledger.fact("artefact", str)
    if known is None or not folder.artefact.exists() or sha256_of(folder.artefact) != known:
        calibration = job.calibration
        tell(f"making the run's artefact ({kind.name}), once: minutes for a large model")
        command = MakeArtefact(
            training=training,
            model_folder=str(model_folder),
            task=job.task,
            model_schema=schema,
            base_kind=job.model.base,
            data=calibration.data if calibration is not None else None,
            rows=calibration.rows if calibration is not None else 0,
            folder=str(folder.evaluator / "artefact"),
            path=str(folder.artefact),
            # No node trains before the run has it.
            threads=os.cpu_count() or 1,
        )
        ask_worker(command, folder.evaluator / "artefact.log")
    found = sha256_of(folder.artefact)
    if known not in (None, found):
        raise RunError(
            f"the run's artefact ({kind.name}) is not the one that it began with, and this machine makes another",
            place=str(folder.artefact),
            remedy="put the file back from a copy, or a node's artefact.bin",
        )
    ledger.put_fact("artefact", found)
    return found
