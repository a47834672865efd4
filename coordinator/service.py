# SPDX-License-Identifier: Apache-2.0
"""The coordinator's shell: one loop that takes events from the wire, the evaluator and the clock, and does what the round machine says.

Order of things that decide the model: file flushed and renamed, then the ledger, then the wire. So a kill at any instant loses no
acknowledged update and publishes nothing that a resumed run would not publish again, bit for bit.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from coordinator.evaluator import Evaluator, raise_failure
from coordinator.files import RunFolder, load_state, save_state
from coordinator.inbox import Inbox
from coordinator.ledger import Ledger, RoundRow, UpdateRow
from coordinator.prepare import Prepared
from coordinator.publisher import Publisher
from coordinator.rounds import (
    Action,
    CloseRound,
    DigestReported,
    EndRun,
    Event,
    FinishRun,
    NodeOffline,
    NodeOnline,
    OpenRound,
    RoundMachine,
    RoundPublished,
    Tick,
    UpdateAccepted,
)
from coordinator.rounds import Declined as NodeDeclined
from coordinator.view import NodeView, RunView
from fedcore.base import Base
from fedcore.checkpoint import Checkpoint
from fedcore.errors import MalformedMessage, UpdateRefused, WorkerError
from fedcore.methods import server_half
from fedcore.plan import OutcomeObject, Plan
from fedcore.projection import signs_checksum
from fedcore.state import model_digest
from fedcore.transport.base import Connected, Disconnected, Received, Transport, TransportEvent
from fedcore.update import UpdateHeader
from fedcore.wire.codec import decode
from fedcore.wire.files import manifest_of
from fedcore.wire.messages import Chunk, Commit, Declined, Missing, Offer, Refuse, Status, Telemetry, Topics
from fedcore.worker import Adopted, Described, Evaluated, Failed, Progress, Ready, Trained, WorkerDied
from fedcore.worker import Event as WorkerEvent

__all__ = ["Coordinator"]

_TICK_SECONDS = 0.25
_UPDATE_SLACK_BYTES = 1_000_000


class Coordinator:
    """A run's coordinator.

    Args:
        prepared: Job, schema, model.
        folder: The run's folder.
        ledger: The run's ledger; an earlier life of the run is continued.
        transport: A transport that is not started yet.
        clock: Unix time in seconds.
        observer: Called with the view after every change.

    Raises:
        FedkrsoError: The model cannot serve as the base.
    """

    def __init__(
        self,
        prepared: Prepared,
        folder: RunFolder,
        ledger: Ledger,
        transport: Transport,
        *,
        clock: Callable[[], float] = time.time,
        observer: Callable[[RunView], None] = lambda view: None,
    ) -> None:
        job = prepared.job
        self._job, self._schema, self._folder, self._ledger = job, prepared.schema, folder, ledger
        self._model_folder = prepared.model_folder
        self._transport, self._clock, self._observer = transport, clock, observer
        self._topics = Topics(job.run)
        self._publisher = Publisher(transport, job.run, folder, job.round.keep_outcomes, self._listeners)
        self._half = server_half(job.method, prepared.schema)
        self._base = Base(Checkpoint(prepared.model_folder), prepared.schema, job.model.base, folder.base)
        rows = ledger.rounds()
        self._state = load_state(folder.state(rows[-1].round)) if rows else self._half.start(job.seed)
        self._published = self._state.publish()
        self._objects = {(obj.version, obj.base_version is None): obj for obj in ledger.outcomes()}
        self._machine = RoundMachine(job.round, job.seed, published=len(rows))
        self._plan: Plan | None = ledger.plan(len(rows) + 1)
        self._queue: queue.Queue[TransportEvent | WorkerEvent | WorkerDied] = queue.Queue()
        self._inbox = Inbox(self._accept, lambda node, body: self._publisher.reply(node, self._machine.round, body))
        self._evaluator: Evaluator | None = None
        self._opened_at = clock()
        self._uplink = 0
        self._ended = False
        self._accepted: list[UpdateAccepted] = []
        self.view = RunView(job.run, job.method.name, job.round.rounds, rows=rows)

    def run(self) -> RunView:
        """Serve until the run has ended; the final view.

        Raises:
            FedkrsoError: The run cannot go on. Everything acknowledged is in the ledger; `resume` continues.
        """
        if self._job.evaluation is not None:
            first = self._plan_of(self._machine.round, (), 0.0)
            folder = self._folder.evaluator
            self._evaluator = Evaluator(self._queue.put, first, self._job.run, self._job.evaluation, str(self._model_folder), folder)
        self._transport.subscribe(self._topics.status("+"))
        self._transport.subscribe(self._topics.up("+", "#"))
        self._transport.start(self._queue.put)
        try:
            self._transport.wait_connected(20.0)
            if self._plan is not None and self._machine.published < self._job.round.rounds:
                accepted = {row.header.node for row in self._ledger.updates(self._plan.round)}
                self._machine.resume_open(self._plan.cohort, accepted, self._plan.deadline_at)
            while not (self._ended and not (self._evaluator and self._evaluator.pending)):
                self._turn()
        finally:
            if self._evaluator is not None:
                self._evaluator.stop()
            self._transport.stop()
        return self.view

    def _turn(self) -> None:
        try:
            event = self._queue.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            self._feed(Tick())
            return
        match event:
            case Received(topic, payload, _):
                self._received(topic, payload)
            case Connected():
                # A broker without persistence has forgotten what was retained.
                if self._machine.published and self._objects:
                    self._publisher.outcome(self._machine.published, self._objects)
                if self._plan is not None:
                    self._publisher.plan(self._plan)
            case Disconnected(reason):
                self._note("link", "", reason)
            case Evaluated():
                self._evaluated(event)
            case Failed():
                raise_failure(event)
            case WorkerDied(_, returncode, tail):
                last = tail.splitlines()[-1] if tail else "no output"
                raise WorkerError(f"the evaluation process ended with {returncode}: {last}")
            case Ready() | Adopted() | Progress() | Trained() | Described():
                pass
        if self._queue.empty():
            self._feed(Tick())

    # From the wire

    def _received(self, topic: str, payload: bytes) -> None:
        node = self._topics.node_of(topic)
        if node is None or not payload:
            return
        try:
            envelope = decode(payload)
            if envelope.run != self._job.run or envelope.node != node:
                raise MalformedMessage(f"a message of {envelope.node!r} in run {envelope.run!r} on this topic")
        except MalformedMessage as error:
            self._note("malformed", node, error.one_line())
            return
        match envelope.body:
            case Status():
                self._status(node, envelope.body)
            case Telemetry():
                self._telemetry(node, envelope.body)
            case Offer():
                self._uplink += len(payload)
                self._offered(node, envelope.body)
            case Chunk():
                self._uplink += len(payload)
                self._inbox.chunk(node, envelope.body, self._clock())
            case Missing(sha256, indices):
                if not self._publisher.repair(node, sha256, indices, self._objects):
                    self._note("refused", node, f"asks for an object that is not published: {sha256[:16]}")
            case Declined(reason):
                self._note("declined", node, reason)
                self._node(node).reason = reason
                self._feed(NodeDeclined(node, envelope.round))
        while self._accepted:
            self._feed(self._accepted.pop(0))

    def _status(self, node: str, status: Status) -> None:
        seen = self._node(node)
        seen.online, seen.state, seen.device, seen.reason = status.online, status.state, status.device, status.reason
        seen.enclosure = status.enclosure or seen.enclosure
        if not status.online:
            self._feed(NodeOffline(node, left=status.state != "lost"))
            return
        seen.version, seen.digest, seen.budget_bytes = status.version, status.digest, status.budget_bytes
        self._feed(NodeOnline(node))
        expected = self._objects.get((status.version, True))
        if status.version > 0 and expected is not None:
            if status.digest == expected.digest:
                self._feed(DigestReported(node, status.version, status.digest))
            elif status.digest:
                self._note("digest", node, f"version {status.version} is {status.digest[:12]}, not {expected.digest[:12]}")

    def _telemetry(self, node: str, numbers: Telemetry) -> None:
        seen = self._node(node)
        seen.state, seen.step, seen.steps, seen.loss = numbers.state, numbers.step, numbers.steps, numbers.loss
        seen.worker_bytes, seen.budget_bytes = numbers.worker_bytes, numbers.budget_bytes
        seen.peak_bytes = max(seen.peak_bytes, numbers.peak_bytes)
        seen.agent_peak_rss_bytes = max(seen.agent_peak_rss_bytes, numbers.agent_peak_rss_bytes)
        seen.parts = numbers.parts or seen.parts
        self._observer(self.view)

    def _offered(self, node: str, offer: Offer) -> None:
        plan = self._plan
        reason = ""
        committed = [row for row in self._ledger.updates(plan.round) if row.header.node == node] if plan else []
        if committed and committed[0].transfer == offer.transfer:
            self._publisher.reply(node, self._machine.round, Commit(offer.transfer))
            return
        if plan is None or not offer.transfer.startswith(f"{plan.round}-") or self._machine.phase != "open":
            reason = "late: the round is over"
        elif node not in plan.cohort:
            reason = "not invited to this round"
        elif committed:
            reason = "this node's update for the round is already here"
        elif offer.manifest.size_bytes > self._largest_update(plan) or not 1024 <= offer.manifest.chunk_bytes <= 1_000_000:
            reason = f"an update of {offer.manifest.size_bytes} bytes is more than the plan can need"
        if reason:
            self._note("refused", node, reason)
            self._publisher.reply(node, self._machine.round, Refuse(offer.transfer, reason))
            return
        assert plan is not None
        self._inbox.offer(node, offer, self._folder.update(plan.round, node), self._clock())

    def _accept(self, node: str, offer: Offer, path: Path) -> str:
        plan = self._plan
        assert plan is not None
        try:
            header = self._half.check(path, plan, self._job.run, node)
        except UpdateRefused as error:
            self._note("refused", node, error.one_line())
            return error.one_line()
        file = str(path.relative_to(self._folder.root))
        self._ledger.put_update(UpdateRow(offer.transfer, file, offer.manifest.size_bytes, header))
        # Told to the round machine after the commit is out: it may close the round and with it this transfer.
        self._accepted.append(UpdateAccepted(node, plan.round))
        return ""

    # What the round machine says

    def _feed(self, event: Event) -> None:
        for action in self._machine.handle(event, self._clock()):
            self._do(action)
        self.view.phase, self.view.round = self._machine.phase, self._machine.round
        self.view.cohort, self.view.accepted = self._machine.cohort, tuple(sorted(self._machine.accepted))
        self._observer(self.view)

    def _do(self, action: Action) -> None:
        match action:
            case OpenRound(server_round, cohort, deadline_at):
                self._open(server_round, cohort, deadline_at)
            case CloseRound(server_round, participants):
                self._close(server_round, participants)
            case FinishRun():
                self._plan = msgspec.structs.replace(self._plan_of(self._machine.published, (), 0.0), phase="finished")
                self._publisher.plan(self._plan)
            case EndRun():
                self._ended = True

    def _open(self, server_round: int, cohort: tuple[str, ...], deadline_at: float) -> None:
        self._opened_at, self._uplink, self._publisher.sent_bytes = self._clock(), 0, 0
        training = self._half.training(self._state, server_round, self._job.seed)
        if training.generation != self._base.generation:
            self._base.fold(self._published, training.generation)
        self._state = self._half.open(self._state, training)
        self._plan = self._plan_of(server_round, cohort, deadline_at)
        self._ledger.put_plan(self._plan)
        self._publisher.plan(self._plan)

    def _plan_of(self, server_round: int, cohort: tuple[str, ...], deadline_at: float) -> Plan:
        training = self._half.training(self._state, server_round, self._job.seed)
        checksums = tuple(signs_checksum(training.seeds, layer.name, training.rank, layer.columns) for layer in self._schema.layers)
        return Plan(
            round=server_round,
            phase="train",
            cohort=cohort,
            deadline_at=deadline_at,
            task=self._job.task,
            base_kind=self._job.model.base,
            base_digest=self._base.digest(),
            model_schema=self._schema,
            checksums=checksums,
            training=training,
            version=self._machine.published,
            objects=self._needed_objects(training.generation),
        )

    def _needed_objects(self, generation: int) -> tuple[OutcomeObject, ...]:
        """Ends of finished generations, and the present version whole and as a difference."""
        ends: dict[int, OutcomeObject] = {}
        for (_, whole), obj in sorted(self._objects.items()):
            if whole and obj.generation < generation:
                ends[obj.generation] = obj
        present = [obj for (version, _), obj in self._objects.items() if version == self._machine.published]
        return tuple(sorted({*ends.values(), *present}, key=lambda o: (o.version, o.base_version is None)))

    def _close(self, server_round: int, participants: tuple[str, ...]) -> None:
        plan = self._plan
        assert plan is not None
        self._inbox.clear()
        updates = [row for row in self._ledger.updates(server_round) if row.header.node in participants]
        self._state = self._half.aggregate(self._state, plan, [(self._folder.root / row.file, row.header) for row in updates])
        previous, self._published = self._published, self._state.publish()
        digest = model_digest(self._base.digest(), self._published)
        objects = []
        for whole in (True, False):
            if not whole and (previous.seeds != self._published.seeds or previous.version == 0):
                continue
            path = self._folder.outcome(server_round, whole=whole)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._published.write(path, previous=None if whole else previous)
            base_version = None if whole else previous.version
            manifest = manifest_of(path, self._job.round.chunk_bytes)
            objects.append(OutcomeObject(server_round, plan.training.generation, base_version, digest, manifest))
        save_state(self._folder.state(server_round), self._state)
        row = self._round_row(server_round, [row.header for row in updates])
        self._ledger.put_outcome(objects, row)
        self._objects |= {(obj.version, obj.base_version is None): obj for obj in objects}
        self._folder.state(server_round - 2).unlink(missing_ok=True)
        self.view.digest = digest
        self._publisher.outcome(server_round, self._objects)
        self._ledger.put_round(msgspec.structs.replace(row, downlink_bytes=self._publisher.sent_bytes))
        self.view.rows = self._ledger.rounds()
        if self._evaluator is not None:
            self._evaluator.evaluate(objects[0], self._folder.outcome(server_round, whole=True))
        self._feed(RoundPublished(server_round))

    def _round_row(self, server_round: int, headers: list[UpdateHeader]) -> RoundRow:
        loss = sum(h.loss for h in headers) / len(headers)
        seconds = self._clock() - self._opened_at
        nodes = tuple(h.node for h in headers)
        return RoundRow(server_round, nodes, self._uplink, self._publisher.sent_bytes, seconds, loss)

    def _evaluated(self, event: Evaluated) -> None:
        assert self._evaluator is not None
        self._evaluator.done(event)
        for row in self._ledger.rounds():
            if row.round == event.version:
                new = msgspec.structs.replace(row, accuracy=event.accuracy, loss=event.loss, metrics=event.metrics)
                self._ledger.put_round(new)
        self.view.rows = self._ledger.rounds()
        self._observer(self.view)

    def _largest_update(self, plan: Plan) -> int:
        numbers = sum(rows * columns for rows, columns in self._half.shapes(plan.training).values())
        return 2 * numbers + _UPDATE_SLACK_BYTES

    def _listeners(self) -> int:
        return sum(node.online for node in self.view.nodes.values())

    def _node(self, node: str) -> NodeView:
        return self.view.nodes.setdefault(node, NodeView(node))

    def _note(self, kind: str, node: str, text: str) -> None:
        self._ledger.note(self._clock(), kind, node, text)
        self.view.events = [*self.view.events[-49:], f"{kind} {node}: {text}".replace(" :", ":")]
        self._observer(self.view)
