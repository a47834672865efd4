# SPDX-License-Identifier: Apache-2.0
"""What a worker does that answers: a server's, or a person's at the terminal. Torch is imported only when a model needs
it."""

from __future__ import annotations

import os
from typing import BinaryIO

from edge_client.worker.answering.answering import Answering, Model
from edge_client.worker.programs.lean import hide_optional_packages
from edge_client.worker.programs.loop import Leave, serve
from fedcore.errors import WorkerError
from fedcore.worker.messages import Command, Event
from fedcore.worker.process import write_message
from fedcore.worker.serving import Classify, Generate, Load, Stop

__all__ = ["AnsweringWorker", "main"]


class AnsweringWorker:
    """A worker that holds a model to answer with.

    Args:
        events: Where tokens go.
    """

    def __init__(self, events: BinaryIO) -> None:
        self._answering = Answering(lambda token: write_message(events, token), os.environ, _full_model)
        self._leaving = False

    def answer(self, command: Command) -> Event | None:
        """Do what a command says.

        Raises:
            FedkrsoError: It cannot be done; the reason is for the person.
        """
        match command:
            case Load():
                return self._answering.load(command)
            case Generate():
                return self._answering.generate(command, self._go_on)
            case Classify():
                return self._answering.classify(command)
            case _:
                raise WorkerError("a worker that answers does nothing else", remedy="start another for it")

    def overtake(self, command: Command) -> bool:
        """From the thread that reads commands: stop the answer that nobody waits for any more."""
        if isinstance(command, Stop):
            self._answering.stop(command.answer)
        return isinstance(command, Stop)

    def leave(self) -> None:
        """From the thread that reads commands: nobody waits for anything."""
        self._leaving = True

    def _go_on(self) -> None:
        if self._leaving:
            raise Leave


def _full_model(load: Load) -> Model:
    # Before what imports them.
    hide_optional_packages()
    from edge_client.worker.answering.full import FullModel

    return FullModel(load, os.environ)


def main(commands: BinaryIO, events: BinaryIO, first: Command) -> None:
    """Serve commands until their stream ends.

    Args:
        commands: Their stream.
        events: Where answers go.
        first: The first of them, a `Load`.
    """
    serve(AnsweringWorker(events), commands, events, first)
