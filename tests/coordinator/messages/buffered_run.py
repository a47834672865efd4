# SPDX-License-Identifier: Apache-2.0
"""A run with buffered rounds and the real coordinator, whose nodes deliver what a test says, when it says so."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coordinator.job import Job, ModelSection, RoundSection
from coordinator.messages.senders import Senders
from coordinator.run.prepare import Prepared
from coordinator.run.service import Service
from coordinator.store.ledger import SqliteLedger
from coordinator.store.view import RunView
from fedcore.config.sections import BrokerSection, TaskSection
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.round.plan import Plan
from fedcore.transport.base import Received
from fedcore.transport.memory import MemoryBroker
from fedcore.wire.codec import decode
from tests.coordinator.messages.one_round import SCHEMA, TOPICS, WAIT_SECONDS, Killed, Node, Run, good

__all__ = ["BufferedRun"]


class BufferedRun(Run):
    """A run that goes on from one life of its coordinator to the next.

    Args:
        root: Its folder.
        names: Nodes that are online.
        settings: Of `[round]`, in place of those here.
    """

    def __init__(self, root: Path, names: Iterable[str] = ("a", "b", "slow"), **settings: Any) -> None:
        super().__init__(root)
        self.names, self.lives = tuple(names), 0
        wanted = {"kind": "buffered", "buffer_size": 2, "max_staleness": 3, "rounds": 4, "min_nodes": len(self.names)}
        self.job = Job(
            run="t",
            model=ModelSection(folder=str(self.model)),
            task=TaskSection(kind="regression"),
            broker=BrokerSection(url="mqtts://x"),
            method=FedKRSOSettings(rank=4, num_seeds=2, steps=20, projection="signs", bits=8),
            round=RoundSection(**{"chunk_bytes": 4096, "finish_seconds": 1, **wanted, **settings}),
        )
        self.plans: dict[int, Plan] = {}
        self.ended: RunView | BaseException | None = None

    @contextmanager
    def life(self) -> Iterator[None]:
        """The coordinator lives within; at the end of it, it is killed if it still does."""
        self.lives, self.ended, killed = self.lives + 1, None, threading.Event()
        broker, self.heard_plans = MemoryBroker(), queue.Queue[Plan]()
        self.broker = broker

        def observe(view: RunView) -> None:
            if killed.is_set():
                raise Killed

        def serve() -> None:
            ledger = SqliteLedger(self.files.ledger)
            try:
                prepared, there = Prepared(self.job, SCHEMA, self.model), (self.files, ledger, broker.connect())
                service = Service(prepared, *there, senders=Senders("t", None), clocks=self.clocks, observer=observe)
                self.ended = service.run()
            except Exception as error:  # noqa: BLE001 (looked at by the test)
                self.ended = error
            finally:
                ledger.close()

        watcher = broker.connect()
        watcher.subscribe(TOPICS.plan)
        watcher.start(self._hear)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        self.nodes = {name: Node(name, broker, start=self.lives) for name in self.names}
        deadline = time.monotonic() + WAIT_SECONDS
        while not all(node.post.run_id for node in self.nodes.values()):
            # What a node says before it is welcome counts nowhere.
            assert time.monotonic() < deadline, self.ended
            time.sleep(0.01)
        yield
        killed.set()
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive() and isinstance(self.ended, RunView | Killed), self.ended

    def _hear(self, event: object) -> None:
        if isinstance(event, Received) and event.payload:
            plan = decode(event.payload).body
            assert isinstance(plan, Plan)
            self.heard_plans.put(plan)

    def open(self, server_round: int) -> Plan:
        """Wait for a round; its plan."""
        deadline = time.monotonic() + WAIT_SECONDS
        while server_round not in self.plans:
            assert time.monotonic() < deadline, (server_round, sorted(self.plans), self.ended)
            try:
                plan = self.heard_plans.get(timeout=0.1)
            except queue.Empty:
                continue
            # One that invites nobody says only that the run goes on; the last one, that it is over.
            if plan.cohort:
                self.plans[plan.round] = plan
            elif plan.phase == "finished":
                self.plans[plan.round + 1] = plan
        return self.plans[server_round]

    def deliver(self, node: str, trained_for: int) -> str:
        """What a node trained for a round, which is the same each time; "" when it is committed, else why not."""
        seed = 100 * trained_for + len(node)
        return self.nodes[node].send(self.open(trained_for), self.files.root / f"{node}.sent", good(seed))

    def digest(self) -> str:
        """Of the last version."""
        ledger = SqliteLedger(self.files.ledger)
        try:
            return ledger.published_states()[-1].digest
        finally:
            ledger.close()
