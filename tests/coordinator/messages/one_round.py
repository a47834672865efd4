# SPDX-License-Identifier: Apache-2.0
"""A run of one round with the real coordinator, whose nodes send what a test gives them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np

from coordinator.job import EvaluationSection, Job, ModelSection, RoundSection, SafetySection
from coordinator.messages.senders import Senders
from coordinator.objects.section import ObjectsSection
from coordinator.run.prepare import Prepared
from coordinator.run.service import Service
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import SqliteLedger
from coordinator.store.view import RunView
from fedcore.config.sections import BrokerSection, TaskSection
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.update import write_update
from fedcore.numbers.accumulator import quantise_rows
from fedcore.numbers.records import Record
from fedcore.round.header import UpdateHeader
from fedcore.round.measurement import UNIT, Measurement, Sum
from fedcore.round.plan import Plan
from fedcore.system.clocks import Clocks
from fedcore.transport.base import Message, Received
from fedcore.transport.memory import MemoryBroker
from fedcore.weights.checkpoint import write_safetensors
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec
from fedcore.wire.codec import decode
from fedcore.wire.files import manifest_of, read_chunk
from fedcore.wire.messages import Body, Commit, Envelope, Grant, Offer, Refuse, Status, Topics, Welcome
from fedcore.wire.post import Post

SCHEMA = ModelSchema((LayerSpec("l", 6, 16),), (TensorSpec("head", (3, 4), False),))
TOPICS = Topics("t")
WAIT_SECONDS = 20.0
Write = Callable[[Path, UpdateHeader], None]
"""Writes a node's update file."""


def records(seed: int, size: float = 0.01) -> list[Record]:
    generator = np.random.default_rng(seed)
    layer, head = ((generator.normal(size=shape) * size).astype(np.float32) for shape in ((6, 8), (3, 4)))
    return [Record("l", quantise_rows(layer, 8), 8), Record("head", quantise_rows(head, 16), 16)]


def good(seed: int, size: float = 0.01, examples: int = 50) -> Write:
    return lambda path, header: write_update(
        path, msgspec.structs.replace(header, examples=examples), records(seed, size)
    )


def measured(rows: int, right: int, version: int = 0) -> Measurement:
    sums = {name: Sum(right * UNIT, rows) for name in ("loss", "accuracy", "spearman", "pearson")}
    return Measurement(version=version, examples=rows, sums=sums)


@dataclass
class Node:
    """A node that sends what it is given, by the real messages."""

    name: str
    broker: MemoryBroker
    inbox: queue.Queue[object] = field(default_factory=queue.Queue)
    start: int = 1
    told: tuple[int, str, Measurement | None] = (0, "", None)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.transport = self.broker.connect()
        self.post = Post("t", self.name, None, self.start)
        self.transport.subscribe(TOPICS.down(self.name, "#"))
        self.transport.start(lambda event: self._heard(decode(event.payload)) if isinstance(event, Received) else None)
        self.tell()

    def _heard(self, envelope: Envelope) -> None:
        if isinstance(envelope.body, Welcome):
            with self.lock:
                self.post.run_id = envelope.run_id
                # As an agent does: what holds now, however late the welcome is.
                self._tell()
        else:
            self.inbox.put(envelope.body)

    def tell(self, version: int = 0, digest: str = "", found: Measurement | None = None) -> None:
        with self.lock:
            self.told = version, digest, found
            self._tell()

    def _tell(self) -> None:
        version, digest, found = self.told
        status = self.post.seal(Status(online=True, version=version, digest=digest, measured=found))
        self.transport.publish(Message(TOPICS.status(self.name), status, retain=True))

    def header(self, plan: Plan) -> UpdateHeader:
        """Of an update that was trained by a plan."""
        return UpdateHeader(
            run="t",
            run_id=plan.run_id,
            round=plan.round,
            node=self.name,
            version=plan.version,
            examples=50,
            rank=4,
            subspaces=(0, 1),
            loss=1.0,
            seconds=1.0,
        )

    def send(self, plan: Plan, path: Path, write: Write) -> str:
        """Send an update; "" when it is committed, else the reason it was refused."""
        self.post.run_id = plan.run_id
        write(path, self.header(plan))
        manifest = manifest_of(path, 1024)
        transfer = f"{plan.round}-{manifest.sha256[:8]}"
        deadline = time.monotonic() + WAIT_SECONDS
        self.say(plan, Offer(transfer, manifest))
        while True:
            try:
                said = self.inbox.get(timeout=1.0)
            except queue.Empty:
                assert time.monotonic() < deadline, "the coordinator does not answer"
                # As an agent does: a coordinator that was started again tells its plan before it knows who is there.
                self.say(plan, Offer(transfer, manifest))
                continue
            match said:
                case Grant() | Commit() | Refuse() if said.transfer != transfer:
                    # What was offered twice is answered twice: of the transfer before.
                    continue
                case Grant():
                    for index in range(manifest.chunks):
                        self.say(plan, read_chunk(path, transfer, index, 1024))
                case Commit():
                    return ""
                case Refuse(_, reason):
                    return reason

    def say(self, plan: Plan, body: Body) -> None:
        self.transport.publish(Message(TOPICS.up(self.name, "x"), self.post.seal(body, plan.round)))


class Killed(Exception):
    """Ends a coordinator's life in the middle of a round."""


class Run:
    """A run of one round over a broker in memory, with the real coordinator in a thread."""

    def __init__(self, root: Path) -> None:
        self.files = RunFolder(root / "run")
        self.files.root.mkdir(parents=True)
        self.model = root / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        weight = np.random.default_rng(0).normal(size=(6, 16)).astype("<f4")
        write_safetensors(self.model / "model.safetensors", [("l.weight", "F32", (6, 16))], lambda name: weight)
        self.ledger = SqliteLedger(self.files.ledger)
        self.nodes: dict[str, Node] = {}
        self.made_of: type[Node] = Node
        self.clocks = Clocks()
        self.objects: ObjectsSection | None = None
        self.observe: Callable[[RunView], None] = lambda view: None
        self.watch: Callable[[MemoryBroker], None] = lambda broker: None
        """Given the broker before anybody speaks."""
        self.heard: list[Message] = []
        """What nodes said, as the broker has it."""
        self.replayed: list[Message] = []
        """Said by somebody once the round is open."""

    def go(
        self,
        sends: Mapping[str, Write],
        safety: SafetySection,
        *,
        idle: Iterable[str] = (),
        die: bool = False,
        evaluation: EvaluationSection | None = None,
        last: Mapping[str, Measurement] = MappingProxyType({}),
    ) -> dict[str, str]:
        """Live until the end of the round, or until all of `sends` are accepted; what each sender was told."""
        broker, answers = MemoryBroker(), {}
        names = [*sends, *idle]
        job = Job(
            run="t",
            model=ModelSection(folder=str(self.model)),
            task=TaskSection(kind="regression"),
            broker=BrokerSection(url="mqtts://x"),
            method=FedKRSOSettings(rank=4, num_seeds=2, steps=20, projection="signs", bits=8),
            safety=safety,
            round=RoundSection(rounds=1, min_nodes=len(names), quorum=2, chunk_bytes=4096),
            evaluation=evaluation,
            objects=self.objects,
        )

        def observe(view: RunView) -> None:
            self.observe(view)
            if die and len(view.accepted) == len(sends):
                raise Killed

        ended: queue.Queue[object] = queue.Queue()

        def serve() -> None:
            # A ledger belongs to the thread that opened it.
            ledger = SqliteLedger(self.files.ledger)
            try:
                prepared = Prepared(job, SCHEMA, self.model)
                senders = Senders("t", None)
                there = self.files, ledger, broker.connect()
                service = Service(prepared, *there, senders=senders, clocks=self.clocks, observer=observe)
                ended.put(service.run())
            except Exception as error:  # noqa: BLE001 (looked at below)
                ended.put(error)
            finally:
                ledger.close()

        thread = threading.Thread(target=serve, daemon=True)
        plans: queue.Queue[Plan] = queue.Queue()
        watcher = broker.connect()
        watcher.subscribe(TOPICS.plan)
        watcher.start(lambda event: plans.put(decode(event.payload).body) if isinstance(event, Received) else None)  # type: ignore[arg-type]
        recorder = broker.connect()
        recorder.subscribe(TOPICS.status("+"))
        recorder.subscribe(TOPICS.up("+", "#"))
        recorder.start(
            lambda event: (
                self.heard.append(Message(event.topic, event.payload)) if isinstance(event, Received) else None
            )
        )
        self.watch(broker)
        thread.start()
        self.nodes = {name: self.made_of(name, broker) for name in names}
        plan = self._plan(plans, ended)
        for message in self.replayed:
            recorder.publish(message)
        for name, write in sends.items():
            answers[name] = self.nodes[name].send(plan, self.files.root / f"{name}.sent", write)
        if not die:
            while plan.phase != "finished":
                plan = self._plan(plans, ended)
            for node in self.nodes.values():
                node.tell(1, plan.objects[-1].digest, last.get(node.name))
        result = ended.get(timeout=WAIT_SECONDS)
        thread.join(WAIT_SECONDS)
        assert isinstance(result, Killed if die else RunView), result
        if isinstance(result, RunView):
            self.view = result
        return answers

    @staticmethod
    def _plan(plans: queue.Queue[Plan], ended: queue.Queue[object]) -> Plan:
        try:
            return plans.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            raise AssertionError(f"no plan; the coordinator: {ended.queue}") from None

    def said(self, kind: str) -> dict[str, str]:
        """The event log's words on each node."""
        return {node: text for _, k, node, text in self.ledger.events() if k == kind}


HONEST = {"good-1": good(1), "good-2": good(2, examples=80)}
