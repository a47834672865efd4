# SPDX-License-Identifier: Apache-2.0
"""The shell around a round's work: a worker process under a limit of its own, whose result is in the ledger before the
round is closed with it. The coordinator's loop goes on meanwhile."""

from __future__ import annotations

import queue
from collections.abc import Callable

import msgspec

from coordinator.store.ledger import Ledger
from coordinator.work.order import Order
from fedcore.errors import WorkerError
from fedcore.system.durable import sha256_of
from fedcore.system.processes import limited
from fedcore.worker.asking import ask_worker
from fedcore.worker.failures import error_of
from fedcore.worker.messages import Event, Failed, Worked
from fedcore.worker.process import WorkerDied, WorkerProcess

__all__ = ["Done", "Working", "performed"]

_FACT = "work"


class Done(msgspec.Struct, frozen=True):
    """What the ledger has of the last work: floats decide it, so a run that goes on reads it and does it no second
    time."""

    key: str
    sha256: str

    @classmethod
    def of(cls, order: Order) -> Done:
        """As it lies on the disk."""
        return cls(order.command.key, sha256_of(order.path))


class Working:
    """Has the work of one round after the other done; idle in runs without.

    Args:
        ledger: Keeps what was done.
        tell: Gets a line for a person when work begins, and when it is done.
    """

    def __init__(self, ledger: Ledger, tell: Callable[[str], None] = lambda line: None) -> None:
        self._ledger, self._tell = ledger, tell
        self._order: Order | None = None
        self._worker: WorkerProcess | None = None
        self._events: queue.Queue[Event | WorkerDied] = queue.Queue()

    def begin(self, order: Order) -> None:
        """Start it; where an earlier life of the coordinator had it done, it is done."""
        self._order = order
        if order.path.exists() and self._ledger.fact(_FACT, Done) == Done.of(order):
            return
        self._tell(f"round {order.plan.round}: a worker makes its outcome of {len(order.command.parts)} updates")
        self._worker = WorkerProcess(
            self._events.put, order.log, prepare=limited(order.memory_bytes, order.command.threads)
        )
        self._worker.send(order.command)

    def done(self) -> Order | None:
        """The work once it is done, and then once; None before.

        Raises:
            FedkrsoError: It cannot be done.
        """
        order = self._order
        if order is None:
            return None
        if self._worker is not None:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return None
            if isinstance(event, Failed):
                raise error_of(event)
            if isinstance(event, WorkerDied):
                raise WorkerError(
                    f"the work of round {order.plan.round} {event.words}",
                    place=str(order.log),
                    remedy="raise method.work_memory if it was too little, and resume",
                )
            if not isinstance(event, Worked):
                return None
            self.stop()
            self._tell(f"round {order.plan.round}: {event.words}")
            self._ledger.put_fact(_FACT, Done.of(order))
        self._order = None
        return order

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
            self._events = queue.Queue()


def performed(order: Order) -> Order:
    """The same, done while one waits: for an experiment, which has nothing else to do.

    Raises:
        FedkrsoError: It cannot be done.
    """
    ask_worker(order.command, order.log, prepare=limited(order.memory_bytes, order.command.threads))
    return order
