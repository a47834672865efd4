# SPDX-License-Identifier: Apache-2.0
"""The worker: `python -m edge_client.worker COMMANDS_FD EVENTS_FD`. Started by an agent or a coordinator, never by hand.

Commands come one at a time and each gets one answer (training also gives progress). A command that fails answers `Failed` with the
error's own words; the worker lives on. The end of the command stream ends the worker.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import torch
from transformers import AutoTokenizer

from edge_client.worker.data import call_by_name, load_examples
from edge_client.worker.evaluate import evaluate
from edge_client.worker.fedkrso import train_round, update_records
from edge_client.worker.fused import fuse
from edge_client.worker.model import describe
from edge_client.worker.replica import Replica
from edge_client.worker.tasks import batches, encode, summed_loss
from fedcore.errors import FedkrsoError, ModelError, WorkerError
from fedcore.job import TaskSection
from fedcore.update import UpdateHeader, write_update
from fedcore.worker import (
    Adopt,
    Adopted,
    Command,
    Configure,
    Describe,
    Described,
    Evaluate,
    Evaluated,
    Event,
    Failed,
    Progress,
    Ready,
    Train,
    Trained,
    read_message,
    write_message,
)

__all__ = ["Worker", "main"]


class Worker:
    """What a worker holds between commands: a replica and the node's data."""

    def __init__(self, events: BinaryIO) -> None:
        self._events = events
        self._replica: Replica | None = None

    def answer(self, command: Command) -> Event:
        """Do what a command says.

        Raises:
            FedkrsoError: It cannot be done; the reason is for the person.
        """
        match command:
            case Describe(model_folder, task, trained_tensors):
                task = resolved_task(task)
                return Described(describe(Path(model_folder), task, trained_tensors), task)
            case Configure():
                return self._configure(command)
            case Adopt(path, version, generation, difference, digest):
                self._held.adopt(Path(path), generation, difference=difference, digest=digest)
                return Adopted(version, generation, digest)
            case Train():
                return self._train(command)
            case Evaluate(version):
                task = self._configured.plan.task
                found = evaluate(self._held.model, self._encoded, task, self._pad_id, self._torch_device)
                return Evaluated(version, *found)

    @property
    def _held(self) -> Replica:
        if self._replica is None:
            raise WorkerError("no model is loaded yet")
        return self._replica

    def _configure(self, command: Configure) -> Ready:
        torch.set_num_threads(command.threads)
        self._configured = command
        self._torch_device = torch.device(command.torch_device)
        folder, task = Path(command.model_folder), command.plan.task
        dtype = torch.bfloat16 if self._torch_device.type == "cuda" else torch.float32
        # The data first: a wrong column shows before seconds of loading.
        examples = load_examples(command.data, task)
        tokenizer = _tokenizer(folder)
        self._encoded = encode(examples, task, tokenizer)
        self._replica = Replica(command.plan, folder, Path(command.folder), self._torch_device, dtype)
        model: Any = self._replica.model
        # The model's own idea of padding, not the tokenizer's: Llama-style classifiers find the last token by it.
        self._pad_id = model.config.pad_token_id or 0
        fuse(model)
        if command.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return Ready(self._replica.state.version, self._replica.base.generation, self._replica.digest(), len(self._encoded))

    def _train(self, command: Train) -> Trained:
        plan, replica, setup = command.plan, self._held, self._configured
        started = time.monotonic()
        replica.open(plan)
        stream = batches(self._encoded, plan.training.batch_size, plan.training.run_seed, plan.round, setup.node)

        def step(number: int) -> float:
            del number
            batch = next(stream)
            weight, loss = sum(e.weight for e in batch), 0.0
            size = setup.micro_batch_size or len(batch)
            for start in range(0, len(batch), size):
                part = summed_loss(replica.model, batch[start : start + size], plan.task, self._pad_id, self._torch_device)
                (part / weight).backward()  # type: ignore[no-untyped-call]
                loss += float(part.detach())
            return loss / weight

        def progress(done: int, steps: int, loss: float) -> None:
            write_message(self._events, Progress(done, steps, loss))

        rank = plan.training.rank
        used, loss = train_round(replica, plan, setup.node, rank, step, progress)
        header = UpdateHeader(
            run=setup.run,
            round=plan.round,
            node=setup.node,
            version=plan.version,
            examples=len(self._encoded),
            rank=rank,
            subspaces=used,
            loss=loss,
            seconds=time.monotonic() - started,
        )
        write_update(Path(command.path), header, update_records(replica, plan, rank, used))
        # Back to the published state: what this node alone learned is in its update.
        replica.restore()
        return Trained(plan.round, command.path, header.examples, loss, header.seconds)


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"no tokenizer: {first}", place=str(folder), remedy="copy tokenizer.json into the model folder") from None


def resolved_task(task: TaskSection) -> TaskSection:
    """A task whose labels are a tuple, also where the job names a function that gives them."""
    if not isinstance(task.labels, str):
        return task
    labels = tuple(map(str, call_by_name(task.labels, {}, "task.labels")))
    return TaskSection(kind=task.kind, labels=labels, max_length=task.max_length)


def main(commands: BinaryIO, events: BinaryIO) -> None:
    """Serve commands until their stream ends."""
    worker = Worker(events)
    while (command := read_message(commands, Command)) is not None:
        try:
            event = worker.answer(command)
        except FedkrsoError as error:
            event = Failed(type(error).__name__, error.message, error.place, error.remedy, error.exit_code)
        except (MemoryError, torch.OutOfMemoryError) as error:
            event = Failed("MemoryError", f"out of memory: {error}", "", "lower the batch or the length", 8)
        write_message(events, event)


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[1]), "rb") as commands_, os.fdopen(int(sys.argv[2]), "wb") as events_:
        main(commands_, events_)
