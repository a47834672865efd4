# SPDX-License-Identifier: Apache-2.0
"""The real coordinator, over a broker in memory, and a crowd of simulated nodes that say what nodes say: no processes,
no training. Its loop runs in a thread of its own, whose processor time is read from outside; what the crowd itself
takes is not in it."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np

from coordinator.coordinator import Coordinator
from coordinator.dashboard.feed import Feed
from coordinator.job import Job, ModelSection, RoundSection
from coordinator.run.control import Commander, Report
from coordinator.store.view import RunView
from fedcore.config.sections import BrokerSection, TaskSection, TrustSection
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.update import write_update
from fedcore.numbers.accumulator import quantise_rows
from fedcore.numbers.records import Record
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.transport.base import Message, Received
from fedcore.transport.memory import MemoryBroker
from fedcore.weights.checkpoint import write_safetensors
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec
from fedcore.wire.codec import decode
from fedcore.wire.files import manifest_of, read_chunk
from fedcore.wire.identity import SigningKey
from fedcore.wire.messages import Body, Commit, Declined, Grant, Offer, Refuse, Status, Telemetry, Topics, Welcome
from fedcore.wire.post import Post
from fedcore.worker.messages import Described

__all__ = ["Crowd"]

_SCHEMA = ModelSchema((LayerSpec("l", 6, 16),), (TensorSpec("head", (3, 4), False),))
_TASK = TaskSection(kind="regression")
_TOPICS = Topics("growth")
_WAIT_SECONDS = 400.0


class _Dashboard:
    """What a dashboard does in the coordinator's thread, without a server: counts what it would send.

    Attributes:
        handed_on: Bytes of each piece of news.
    """

    def __init__(self) -> None:
        self.handed_on: list[int] = []
        self._feed = Feed(self._take)
        self.command: Commander | None = None

    def observe(self, view: RunView) -> None:
        """See `coordinator.coordinator.Screen`."""
        self._feed.observe(view)

    def start(self, view: RunView, command: Commander, ledger: Path) -> None:
        """See `coordinator.coordinator.Screen`."""
        self.command = command

    def _take(self, *news: Any) -> None:
        self.handed_on.append(sum(len(part) for part in news if isinstance(part, bytes)))


class Crowd:
    """A run with so many nodes; use it as a context manager.

    Args:
        folder: For the run; an empty one, best in memory.
        nodes: How many.
        rounds: Of the job.
    """

    def __init__(self, folder: Path, nodes: int, rounds: int) -> None:
        self.folder, self.names = folder, [f"node-{number:05}" for number in range(nodes)]
        keys = [SigningKey(number.to_bytes(32, "big")) for number in range(nodes + 1)]
        public = dict(zip(self.names, (key.public.hex for key in keys[1:]), strict=True))
        (folder / "enrolled.json").write_bytes(
            msgspec.json.encode({"coordinator": keys[0].public.hex, "nodes": public})
        )
        (folder / "key").touch(0o600)
        (folder / "key").write_text(bytes(32).hex())
        self._posts = {name: Post(_TOPICS.run, name, key, 1) for name, key in zip(self.names, keys[1:], strict=True)}
        self._records = _records()
        self.dashboard, self._broker = _Dashboard(), MemoryBroker()
        self._heard: queue.SimpleQueue[Received] = queue.SimpleQueue()
        self._transport = self._broker.connect()
        self._coordinator = Coordinator(self._job(rounds), runs=folder, screens=(self.dashboard,))
        self._thread = threading.Thread(target=self._lead, daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> Crowd:
        self._transport.subscribe(_TOPICS.plan)
        self._transport.subscribe(_TOPICS.down("+", "#"))
        self._transport.start(lambda event: self._heard.put(event) if isinstance(event, Received) else None)
        self._thread.start()
        while self.dashboard.command is None:
            self._require_alive()
            time.sleep(0.01)
        # Its loop turns.
        self.settled()
        return self

    def __exit__(self, *error: object) -> None:
        self._coordinator.stop()
        self._thread.join(_WAIT_SECONDS)
        self._transport.stop()

    def processor_seconds(self) -> float:
        """Of the coordinator's thread."""
        assert self._thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def taken(self, work: Callable[[], object]) -> float:
        """Processor seconds that the coordinator takes for some work of the crowd, until nothing of it waits."""
        before = self.processor_seconds()
        work()
        self.settled()
        return self.processor_seconds() - before

    def settled(self) -> None:
        """Wait until the coordinator has taken all that was said so far."""
        assert self.dashboard.command is not None
        self.dashboard.command(Report("all is said"), "crowd").result(_WAIT_SECONDS)

    def join(self) -> Plan:
        """All nodes come; the first round's plan. The first node asks which run it is in, for all of them."""
        self._say_status(self.names[0], -1, "")
        run_id = self._next(lambda heard: isinstance(heard.body, Welcome)).run_id
        for name in self.names:
            self._posts[name].run_id = run_id
            self._say_status(name, -1, "")
        return self.next_plan()

    def tell(self, version: int, digest: str, plan: Plan, step: int) -> None:
        """Telemetry of all nodes.

        Args:
            version: That they hold.
            digest: Of it.
            plan: That they have heard.
            step: At which they are.
        """
        for name in self.names:
            self._up(name, "telemetry", _telemetry(version, digest, plan, step), plan.round)

    def report(self, version: int, digest: str, *, but: int = 0) -> None:
        """All nodes say what they hold, but for so many of them."""
        for name in self.names[but:]:
            self._say_status(name, version, digest)

    def decline(self, plan: Plan) -> None:
        """All nodes rest, and say so."""
        for name in self.names:
            self._up(name, "declined", Declined("on battery"), plan.round)

    def update(self, plan: Plan) -> Plan:
        """All nodes send their update at the same instant; the next plan."""
        transfers, wanted = {}, set(self.names)
        for name in self.names:
            path = self.folder / f"{name}.update"
            write_update(path, _header(plan, name), self._records)
            manifest = manifest_of(path, 65_536)
            transfers[name] = f"{plan.round}-{manifest.sha256[:8]}", path
            self._up(name, "offer", Offer(transfers[name][0], manifest), plan.round)
        while wanted:
            heard = self._next(lambda heard: isinstance(heard.body, Grant | Commit | Refuse))
            name = heard.node
            if isinstance(heard.body, Refuse):
                raise RuntimeError(f"{name}: {heard.body.reason}")
            if isinstance(heard.body, Commit):
                wanted.discard(name)
            else:
                transfer, path = transfers[name]
                self._up(name, "chunk", read_chunk(path, transfer, 0, 65_536), plan.round)
        return self.next_plan()

    def next_plan(self) -> Plan:
        """The next plan that invites somebody, or ends the run."""
        plan = self._next(lambda heard: isinstance(heard.body, Plan) and not heard.node).body
        assert isinstance(plan, Plan)
        return plan if plan.cohort or plan.phase == "finished" else self.next_plan()

    def view(self) -> RunView:
        """As it is now: read while nothing is on its way."""
        service = self._coordinator._service
        assert service is not None
        return service.view

    def ended(self) -> None:
        """Wait for the run's end."""
        self._thread.join(_WAIT_SECONDS)
        self._require_alive(ended=True)

    def _next(self, wanted: Callable[[Any], bool]) -> Any:
        while True:
            try:
                payload = self._heard.get(timeout=5.0).payload
            except queue.Empty:
                self._require_alive()
                continue
            envelope = decode(payload) if payload else None
            if envelope is not None and wanted(envelope):
                return envelope

    def _require_alive(self, *, ended: bool = False) -> None:
        if self._error is not None or (not ended and self._thread.ident and not self._thread.is_alive()):
            raise RuntimeError(f"the coordinator ended: {self._error!r}")

    def _lead(self) -> None:
        try:
            # The broker in memory in place of one over MQTT; all else is as `fedkrso coordinator run` has it.
            with (
                patch("coordinator.coordinator.MqttTransport", lambda settings, jitter: self._broker.connect()),
                patch("coordinator.coordinator.reach", lambda settings, seconds: None),
            ):
                self._coordinator.run()
        except BaseException as error:  # noqa: BLE001 (told by whoever waits)
            self._error = error
            sys.stderr.write(f"{error!r}\n")

    def _say_status(self, name: str, version: int, digest: str) -> None:
        status = Status(online=True, state="idle", device="board", version=version, digest=digest, budget_bytes=2**29)
        self._transport.publish(Message(_TOPICS.status(name), self._posts[name].seal(status), retain=True))

    def _up(self, name: str, kind: str, body: Body, server_round: int) -> None:
        self._transport.publish(Message(_TOPICS.up(name, kind), self._posts[name].seal(body, server_round)))

    def _job(self, rounds: int) -> Job:
        model = self.folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        weight = np.random.default_rng(0).normal(size=(6, 16)).astype("<f4")
        write_safetensors(model / "model.safetensors", [("l.weight", "F32", (6, 16))], lambda name: weight)
        described = self.folder / "schema.json"
        described.write_bytes(msgspec.json.encode(Described(_SCHEMA, _TASK)))
        nodes = len(self.names)
        return Job(
            run=_TOPICS.run,
            model=ModelSection(folder=str(model), schema_file=str(described)),
            task=_TASK,
            broker=BrokerSection(url="mqtts://localhost"),
            trust=TrustSection(signing_key=str(self.folder / "key"), enrolled=str(self.folder / "enrolled.json")),
            method=FedKRSOSettings(rank=4, num_seeds=2, steps=20, projection="signs", bits=8),
            round=RoundSection(rounds=rounds, min_nodes=nodes, quorum=nodes, chunk_bytes=65_536, deadline_slack=0),
        )


def _records() -> list[Record]:
    generator = np.random.default_rng(0)
    layer, head = ((generator.normal(size=shape) * 0.01).astype(np.float32) for shape in ((6, 8), (3, 4)))
    return [Record("l", quantise_rows(layer, 8), 8), Record("head", quantise_rows(head, 16), 16)]


def _header(plan: Plan, name: str) -> UpdateHeader:
    return UpdateHeader(
        run=_TOPICS.run,
        run_id=plan.run_id,
        round=plan.round,
        node=name,
        version=plan.version,
        examples=50,
        rank=4,
        subspaces=(0, 1),
        loss=1.0,
        seconds=1.0,
    )


def _telemetry(version: int, digest: str, plan: Plan, step: int) -> Telemetry:
    return Telemetry(
        state="training",
        step=step,
        steps=20,
        loss=1.0 / (1 + step),
        agent_rss_bytes=38_000_000,
        agent_peak_rss_bytes=39_000_000,
        worker_bytes=400_000_000 + step,
        peak_bytes=450_000_000,
        budget_bytes=2**29,
        uplink_bytes=1000 * step,
        downlink_bytes=2000 * step,
        version=version,
        digest=digest,
        plan=plan.key,
    )
