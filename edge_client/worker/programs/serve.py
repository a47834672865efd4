# SPDX-License-Identifier: Apache-2.0
"""What a worker does with its commands that trains, measures, and works on files; `loop` has how they come, `answer`
what a worker does that answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import torch

from edge_client.worker.answering.parts import Parts
from edge_client.worker.answering.scores import scores_of_texts
from edge_client.worker.answering.written import written
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.heldout import node_examples, sampled
from edge_client.worker.data.packing import check_apart
from edge_client.worker.data.reading import resolved_task
from edge_client.worker.data.tasks import Encoded, encoded_rows, worker_task
from edge_client.worker.programs.files import artefact_made, imported, worked, written_gguf
from edge_client.worker.programs.loop import Leave, serve
from edge_client.worker.programs.tracing import traced
from edge_client.worker.trace.footprint import TINY_LENGTH
from edge_client.worker.train.agreement import described
from edge_client.worker.train.answered import Asked, answered, questions_of
from edge_client.worker.train.calibrate import calibrate
from edge_client.worker.train.evaluate import compares_texts, evaluate, metrics_by_name
from edge_client.worker.train.highwater import begin_peak, peak_bytes
from edge_client.worker.train.leftovers import forget_other_runs
from edge_client.worker.train.measuring import Measurer, held_out_of
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Hooks, Trainer, apply
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import FedkrsoError, WorkerError
from fedcore.weights.checkpoint import Checkpoint
from fedcore.worker.exchange import AlignEmulator, ImportModel, WriteGguf
from fedcore.worker.messages import (
    Adopt,
    Adopted,
    Command,
    Configure,
    Describe,
    Evaluate,
    Evaluated,
    Event,
    MakeArtefact,
    Measure,
    Measured,
    Progress,
    Ready,
    Route,
    StepDown,
    Trace,
    Train,
    Trained,
)
from fedcore.worker.parts import Begin, Finish, LoadPart
from fedcore.worker.process import write_message
from fedcore.worker.serving import Answer, Answered, Classify, Generate, Load, Stop
from fedcore.worker.work import Work

__all__ = ["Worker", "main"]


class Worker:
    """What a worker holds between commands: a replica and the node's data."""

    def __init__(self, events: BinaryIO, route: Route | FedkrsoError | None = None) -> None:
        self._events = events
        self._route = route
        self.parts = Parts(read_tokenizer)
        self._replica: Replica | None = None
        self._wanted_memory_step = 0
        self._leaving = False

    def answer(self, command: Command) -> Event | None:
        """Do what a command says.

        Raises:
            FedkrsoError: It cannot be done; the reason is for the person.
        """
        match command:
            case Describe(model_folder, task, trained_tensors, adapter):
                return described(Checkpoint(Path(model_folder)), resolved_task(task), trained_tensors, adapter)
            case MakeArtefact():
                return artefact_made(command)
            case Trace():
                return traced(command, self._route_of(command))
            case Configure():
                return self._configure(command)
            case Adopt(path, version, generation, kind, digest):
                self._held.adopt(Path(path), generation, kind, digest)
                return Adopted(version, generation, digest)
            case Measure(plan, memory, at_once):
                self._wanted_memory_step = 0
                return self._measurer.measured(plan, memory, at_once)
            case Train():
                return self._train(command)
            case StepDown() | Stop():
                return None
            case Load() | Generate() | Classify():
                raise WorkerError(
                    "a worker that trains does not answer", remedy="start one whose first command is `load`"
                )
            case Answer(folder, task, texts) if task_of(task).outputs() is None:
                said = written(Path(folder), task, [text for text, _ in texts], read_tokenizer(Path(folder)))
                return Answered((), said)
            case Answer(folder, task, texts):
                return Answered(scores_of_texts(Path(folder), task, texts, read_tokenizer(Path(folder))))
            case LoadPart():
                return self.parts.load(command)
            case Begin():
                return self.parts.begin(command)
            case Finish():
                return self.parts.finish(command)
            case Work():
                return worked(command)
            case AlignEmulator():
                from edge_client.worker.programs.align import aligned

                return aligned(command)
            case ImportModel(path, folder):
                return imported(Path(path), Path(folder))
            case WriteGguf(folder, path, stored, description):
                return written_gguf(Path(folder), Path(path), stored, description)
            case Evaluate(version):
                return self._evaluate(version)

    def overtake(self, command: Command) -> bool:
        """From the thread that reads commands: have the next micro-batch take the step of a step down."""
        if isinstance(command, StepDown):
            self._wanted_memory_step = max(self._wanted_memory_step, command.memory_step)
        return isinstance(command, StepDown)

    def leave(self) -> None:
        """From the thread that reads commands: nobody waits for what is being trained; finished intervals are on
        disk."""
        self._leaving = True

    @property
    def _held(self) -> Replica:
        if self._replica is None:
            raise WorkerError("no model is loaded yet")
        return self._replica

    def _route_of(self, command: Trace) -> Route:
        """As the command names it, or as it was found before the libraries were loaded."""
        if "auto" not in (command.torch_device, command.compute_dtype):
            return Route(command.torch_device, command.compute_dtype)
        if self._route is None:
            raise WorkerError("the compute route is asked for too late: a worker's first command asks for it")
        if isinstance(self._route, FedkrsoError):
            raise self._route
        return self._route

    def _configure(self, command: Configure) -> Ready:
        torch.set_num_threads(command.threads)
        self._configured = command
        self._torch_device = torch.device(command.torch_device)
        folder, task = Path(command.model_folder), command.plan.task
        if command.memory.length:
            task = msgspec.structs.replace(task, max_length=command.memory.length)
        dtype: torch.dtype = getattr(torch, command.compute_dtype)
        self._metrics = metrics_by_name(command.metrics)
        # The data first: a wrong column shows before seconds of loading.
        (examples, held_out), tokenizer = (
            node_examples(command.data, task, command.plan.evaluation),
            read_tokenizer(folder),
        )
        if command.rows:
            examples = sampled(examples, command.rows, command.share_seed)
        rows = encoded_rows(examples, task, tokenizer)
        self._encoded, self._asked = rows.encoded, Asked()
        if compares_texts(self._metrics.values()):
            self._asked = questions_of(rows.firsts, task, tokenizer, command.max_new_tokens)
        apart = held_out_of(command.plan, held_out, self._encoded, task, tokenizer)
        own = Path(command.folder)
        # A name can be used again, an id cannot.
        forget_other_runs(own, command.plan.run_id or command.run)
        artefact = Path(command.artefact) if command.artefact else None
        self._replica = Replica(
            command.plan, folder, own, self._torch_device, dtype, mapped=command.memory.mapped, artefact=artefact
        )
        self._pad_id = self._replica.model.pad_id
        self._replica.lighten()
        apply(self._replica.model, command.memory)
        self._trainer = Trainer(
            self._replica,
            self._rows(task),
            own / "intervals",
            command.run,
            command.node,
            self._pad_id,
            self._torch_device,
            Hooks(self._report, self._wanted),
        )
        self._measurer = Measurer(
            self._replica,
            apart,
            own / "measured.msgpack",
            command.run,
            command.node,
            self._pad_id,
            self._torch_device,
            self._wanted,
        )
        highest = peak_bytes()
        measured: tuple[Measured, ...] = ()
        if command.calibrate:
            tiny = min(TINY_LENGTH, max(len(e.ids) for e in self._encoded))
            measured = calibrate(self._replica, command.plan, tiny, self._pad_id, self._torch_device)
        state, base = self._replica.state, self._replica.base
        held = self._accelerator_bytes()
        return Ready(
            state.version,
            base.generation,
            self._replica.digest(),
            len(self._encoded),
            measured,
            highest,
            held,
            rows.cut,
            rows.left_out,
            worker_task(task).trivial(self._encoded),
        )

    def _evaluate(self, version: int) -> Evaluated:
        model, task = self._held.model, self._configured.plan.task
        numbers = evaluate(
            model,
            self._encoded,
            task,
            self._pad_id,
            self._torch_device,
            self._metrics,
            lambda: answered(model, self._asked, wanted=self._go_on),
        )
        return Evaluated(version, *numbers)

    def _rows(self, task: TaskSection) -> Sequence[Encoded]:
        """What is trained on; of a model that keeps several examples in a row apart, where there are such."""
        rows = worker_task(task).rows(self._encoded)
        if any(row.segments for row in rows):
            check_apart(self._held.model, self._torch_device)
        return rows

    def _report(self, done: int, steps: int, loss: float, memory_step: int) -> None:
        write_message(self._events, Progress(done, steps, loss, memory_step, peak_bytes(), self._accelerator_bytes()))
        begin_peak()

    def _accelerator_bytes(self) -> int | None:
        """What torch holds of the accelerator's memory, free blocks among it; the driver's own share is not in it."""
        return torch.cuda.memory_reserved(self._torch_device) if self._torch_device.type == "cuda" else None

    def _wanted(self) -> int:
        """Asked before every micro-batch."""
        self._go_on()
        return self._wanted_memory_step

    def _go_on(self) -> None:
        if self._leaving:
            raise Leave

    def _train(self, command: Train) -> Trained:
        self._wanted_memory_step = 0
        begin_peak()
        plan = command.plan
        header, trained = self._trainer.train(plan, command.memory_steps, Path(command.path), command.measured)
        return Trained(
            plan.round,
            command.path,
            header.examples,
            header.loss,
            header.seconds,
            trained.restored,
            trained.steps,
            plan.training.batch_size,
        )


def main(
    commands: BinaryIO, events: BinaryIO, first: Command | None = None, route: Route | FedkrsoError | None = None
) -> None:
    """Serve commands until their stream ends.

    Args:
        commands: Their stream.
        events: Where answers go.
        first: A command that was read already.
        route: How to compute, where `first` left it open; or why that cannot be found.
    """
    serve(Worker(events, route), commands, events, first)
