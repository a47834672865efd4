# SPDX-License-Identifier: Apache-2.0
"""A worker's commands, one at a time, and its answers to them; no torch.

Each command gets one answer (training also gives progress, an answer its tokens). A command that fails answers `Failed`
with the error's own words; the worker lives on. The end of the command stream ends the worker."""

from __future__ import annotations

import queue
import resource
import threading
from typing import BinaryIO, Protocol

import msgspec

from edge_client.worker.train.highwater import is_out_of_memory
from fedcore.errors import FedkrsoError, OutOfMemory, StorageError, WorkerError
from fedcore.system.durable import is_full
from fedcore.worker.failures import failure_of
from fedcore.worker.messages import Command, Event
from fedcore.worker.process import read_message, write_message

__all__ = ["Leave", "Program", "serve"]


class Leave(Exception):
    """Ends training between two micro-batches, and an answer between two tokens."""


class Program(Protocol):
    """What a worker holds between commands."""

    def answer(self, command: Command) -> Event | None:
        """Do what a command says.

        Raises:
            FedkrsoError: It cannot be done; the reason is for the person.
            Leave: Nobody waits for it any more.
        """
        ...

    def overtake(self, command: Command) -> bool:
        """From the thread that reads commands: whether this one is for what is being done, and has no answer of its
        own."""
        ...

    def leave(self) -> None:
        """From the thread that reads commands: nobody waits for what is being done; finished intervals are on disk."""
        ...


def serve(worker: Program, commands: BinaryIO, events: BinaryIO, first: Command | None = None) -> None:
    """Serve commands until their stream ends.

    Args:
        worker: Does them.
        commands: Their stream.
        events: Where answers go.
        first: A command that was read already.
    """
    # Each mapped layer holds a file descriptor.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 65_536 else 65_536, hard))
    waiting: queue.Queue[Command | Exception | None] = queue.Queue()
    if first is not None:
        waiting.put(first)

    def read() -> None:
        # A thread, so that a step down reaches a worker that trains.
        end: Exception | None = None
        try:
            while (command := read_message(commands, Command)) is not None:
                if not worker.overtake(command):
                    waiting.put(command)
        except (WorkerError, msgspec.DecodeError) as error:
            end = error
        worker.leave()
        waiting.put(end)

    threading.Thread(target=read, name="commands", daemon=True).start()
    while (command := waiting.get()) is not None:
        if isinstance(command, Exception):
            # Of another version's supervisor, or broken: it hears at once that this worker is gone, and why.
            raise command
        try:
            event = worker.answer(command)
        except FedkrsoError as error:
            event = failure_of(error)
        except OSError as error:
            if not is_full(error):
                raise
            place = str(error.filename or "folder")
            event = failure_of(
                StorageError(f"the disk is full: {error.strerror}", place=place, remedy="free space there")
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            event = failure_of(OutOfMemory(f"out of memory: {error}", place="memory_budget", remedy="raise it"))
        except Leave:
            return
        if event is not None:
            write_message(events, event)
