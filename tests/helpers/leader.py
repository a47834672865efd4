# SPDX-License-Identifier: Apache-2.0
"""A real coordinator in a thread, over a broker in memory, that goes on by one round when told: its only node sends
random updates."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.job import Job, ModelSection, RoundSection
from coordinator.messages.senders import Senders
from coordinator.run.prepare import Prepared
from coordinator.run.service import Service
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import SqliteLedger
from coordinator.store.view import RunView
from fedcore.config.sections import BrokerSection, TaskSection
from fedcore.fields.types import BaseKind
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.update import write_update
from fedcore.numbers.accumulator import quantise_rows
from fedcore.numbers.records import Record
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan, StateObject
from fedcore.transport.base import Message, Received
from fedcore.transport.memory import MemoryBroker
from fedcore.weights.schema import ModelSchema
from fedcore.wire.codec import decode
from fedcore.wire.files import manifest_of, read_chunk
from fedcore.wire.messages import Body, Commit, Envelope, Grant, Offer, Refuse, Status, Topics, Welcome
from fedcore.wire.post import Post

__all__ = ["Killed", "Leader"]

_TOPICS = Topics("t")
# All chunks go out at once: as few as a node may have under way.
_CHUNK_BYTES = 1_000_000
# A run of a real model takes its time on a busy machine; one that has ended is told at once.
_WAIT_SECONDS = 300.0


class Killed(BaseException):
    """Ends a coordinator's life where it is raised."""


class Leader:
    """A run.

    Args:
        root: Its folder.
        model: The checkpoint.
        schema: Of the checkpoint for the task.
        task: What is learned.
        rounds: How many there are.
        every: Rounds in a generation; 0 for seeds that stay.
        size: Of the random changes, which are the same for the same seed and round.
    """

    def __init__(
        self,
        root: Path,
        model: Path,
        schema: ModelSchema,
        task: TaskSection,
        *,
        base: BaseKind = "int8",
        rounds: int = 99,
        every: int = 1,
        size: float = 0.01,
        open_ledger: Callable[[Path], Any] = SqliteLedger,
    ) -> None:
        self._open_ledger = open_ledger
        self.files, self.model, self.schema, self.size = RunFolder(root), model, schema, size
        self.files.root.mkdir(parents=True, exist_ok=True)
        method = FedKRSOSettings(
            rank=4,
            num_seeds=2,
            steps=20,
            bits=16,
            published_bits=16,
            projection="signs",
            schedule="fresh" if every else "pool",
            refresh_every=every or 1,
        )
        self.job = Job(
            run="t",
            model=ModelSection(folder=str(model), base=base),
            task=task,
            broker=BrokerSection(url="mqtts://x"),
            method=method,
            round=RoundSection(rounds=rounds, min_nodes=1, chunk_bytes=4096, finish_seconds=1),
        )
        self._answers: queue.Queue[Body] = queue.Queue()
        self._plans: queue.Queue[Plan] = queue.Queue()
        self._ended: queue.Queue[object] = queue.Queue()
        self._stop = False
        self._lives = 0

    def start(self, wait_seconds: float = _WAIT_SECONDS) -> Plan:
        """Begin the run, or go on with it after `kill`; the plan of the round that is open."""
        self._lives, self._stop, self._broker = self._lives + 1, False, MemoryBroker()
        self._plans, self._ended = queue.Queue(), queue.Queue()
        self._transport = self._broker.connect()
        self._post = Post("t", "n", None, self._lives)
        self._transport.subscribe(_TOPICS.plan)
        self._transport.subscribe(_TOPICS.down("n", "#"))
        self._transport.start(
            lambda event: self._heard(decode(event.payload)) if isinstance(event, Received) and event.payload else None
        )
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._tell()
        return self.next_plan(wait_seconds)

    def advance(self, plan: Plan, wait_seconds: float = _WAIT_SECONDS) -> Plan:
        """Send the round's update; the plan of the next round."""
        path = self.files.root / "sent.bin"
        header = UpdateHeader(
            run="t",
            run_id=plan.run_id,
            round=plan.round,
            node="n",
            version=plan.version,
            examples=9,
            rank=4,
            subspaces=(0, 1),
            loss=1.0,
            seconds=1.0,
        )
        write_update(path, header, self._records(plan))
        manifest = manifest_of(path, _CHUNK_BYTES)
        transfer = f"{plan.round}-{manifest.sha256[:8]}"
        self._up(plan, Offer(transfer, manifest))
        while True:
            match self._answers.get(timeout=_WAIT_SECONDS):
                case Grant():
                    for index in range(manifest.chunks):
                        self._up(plan, read_chunk(path, transfer, index, _CHUNK_BYTES))
                case Refuse(_, reason):
                    raise AssertionError(reason)
                case Commit():
                    return self.next_plan(wait_seconds)

    def until(self, server_round: int, plan: Plan) -> Plan:
        """Go on to a round."""
        while plan.round < server_round:
            plan = self.advance(plan)
        return plan

    def kill(self) -> None:
        """End the coordinator where it is."""
        self._stop = True
        self._tell()
        self.died()

    def died(self) -> object:
        """Wait for the coordinator's end; what it ended with."""
        result = self._ended.get(timeout=_WAIT_SECONDS)
        self._thread.join(_WAIT_SECONDS)
        self._transport.stop()
        return result

    def path(self, obj: StateObject) -> Path:
        """A published object's file."""
        return self.files.published_state(obj.version, obj.kind)

    def _records(self, plan: Plan) -> list[Record]:
        chance = np.random.default_rng(plan.round)
        shapes = [(s.name, (s.rows, 8)) for s in self.schema.layers] + [(s.name, s.matrix) for s in self.schema.tensors]
        return [
            Record(name, quantise_rows((chance.normal(size=shape) * self.size).astype(np.float32), 16), 16)
            for name, shape in shapes
        ]

    def _serve(self) -> None:
        # A ledger belongs to the thread that opened it.
        ledger = self._open_ledger(self.files.ledger)

        def observe(view: RunView) -> None:
            if self._stop:
                raise Killed

        try:
            prepared = Prepared(self.job, self.schema, self.model)
            senders = Senders("t", None)
            self.coordinator = Service(
                prepared, self.files, ledger, self._broker.connect(), senders=senders, observer=observe
            )
            self._ended.put(self.coordinator.run())
        except BaseException as error:  # noqa: BLE001 (looked at by `died` and `next_plan`)
            self._ended.put(error)
        finally:
            ledger.close()

    def _heard(self, envelope: Envelope) -> None:
        body = envelope.body
        # A resumed run's plan may come before the welcome, and is answered at once.
        self._post.run_id = envelope.run_id
        if isinstance(body, Welcome):
            self._tell()
        elif isinstance(body, Plan):
            # One that invites nobody says only that the run goes on.
            if body.cohort or body.phase == "finished":
                self._plans.put(body)
        else:
            self._answers.put(body)

    def next_plan(self, wait_seconds: float = _WAIT_SECONDS) -> Plan:
        """Wait for a plan that is not taken yet."""
        deadline = wait_seconds
        while deadline > 0:
            try:
                return self._plans.get(timeout=0.1)
            except queue.Empty:
                deadline -= 0.1
                if not self._ended.empty():
                    raise AssertionError(f"the coordinator ended: {self._ended.queue[0]!r}") from None
        raise AssertionError("no plan")

    def _tell(self) -> None:
        self._transport.publish(Message(_TOPICS.status("n"), self._post.seal(Status(online=True)), retain=True))

    def _up(self, plan: Plan, body: Body) -> None:
        self._transport.publish(Message(_TOPICS.up("n", "x"), self._post.seal(body, plan.round)))
