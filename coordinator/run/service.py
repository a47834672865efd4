# SPDX-License-Identifier: Apache-2.0
"""The coordinator's shell: one loop that takes events from the wire, the evaluator and the clock, and does what the
round machine says.

Order of things that decide the model: file flushed and renamed, then the ledger, then the wire. So a kill at any
instant loses no acknowledged update and publishes nothing that a resumed run would not publish again, bit for bit."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future

import msgspec

import coordinator.rounds.events as e
from coordinator.messages.gate import Gate
from coordinator.messages.kept import Kept
from coordinator.messages.probe import denied, settled
from coordinator.messages.publisher import Publisher
from coordinator.messages.reception import Reception
from coordinator.messages.senders import Senders
from coordinator.objects.shelf import Shelf
from coordinator.objects.uploads import Uploads
from coordinator.rounds.machine import RoundMachine
from coordinator.run.archive import Archive
from coordinator.run.control import Answer, Asked, Command, Control, refuse_all
from coordinator.run.going_on import remember
from coordinator.run.measuring import Measuring
from coordinator.run.model import Closed, GlobalModel, Learning
from coordinator.run.prepare import Prepared
from coordinator.run.rivals import Rivals
from coordinator.run.showing import Pace, Showing
from coordinator.secure.leading import Leading
from coordinator.store.buffer import counting
from coordinator.store.eventlog import EventLog
from coordinator.store.folder import RunFolder, written
from coordinator.store.ledger import Ledger, begin_life
from coordinator.store.rows import RoundRow
from coordinator.store.view import RunView
from coordinator.work.working import Working
from fedcore.round.plan import Plan
from fedcore.system.clocks import Clocks
from fedcore.transport.address import is_encrypted
from fedcore.transport.base import (
    CONNECT_SECONDS,
    Connected,
    Denied,
    Disconnected,
    Limits,
    Received,
    Transport,
    TransportEvent,
)
from fedcore.wire.identity import SigningKey, security
from fedcore.wire.messages import Topics
from fedcore.wire.post import Post
from fedcore.worker.failures import error_of
from fedcore.worker.messages import Evaluated, Failed, Ready
from fedcore.worker.messages import Event as WorkerEvent
from fedcore.worker.process import WorkerDied

__all__ = ["Service"]

# Until the transport takes more, when it took not all.
_FLUSH_SECONDS = 0.01


class Service:
    """A run at work.

    Args:
        prepared: Job, schema, model.
        folder: The run's folder.
        ledger: The run's ledger; an earlier life of the run is continued.
        transport: A transport that is not started yet.
        senders: Whose messages count.
        key: Signs the coordinator's messages; None in a run without keys.
        clocks: For deadlines, and for people; the machine's by default.
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
        senders: Senders,
        key: SigningKey | None = None,
        clocks: Clocks | None = None,
        observer: Callable[[RunView], None] = lambda view: None,
    ) -> None:
        job, clocks = prepared.job, clocks or Clocks()
        self._schema, self._folder, self._ledger = prepared.schema, folder, ledger
        self._model_folder, self._private, self._transport = prepared.model_folder, prepared.private, transport
        self._clocks, self._topics = clocks, Topics(job.run, job.fleet)
        self._senders, self._log, self._gate = senders, EventLog(ledger, clocks), Gate(self._topics, clocks.steady)
        senders.run_id, start = begin_life(ledger)
        post = Post(job.run, "", key, start, senders.run_id)
        there = lambda: len(self._machine.online)  # noqa: E731
        self._queue: queue.Queue[TransportEvent | WorkerEvent | WorkerDied | Asked | None] = queue.Queue()
        named, wake = f"{job.full_name}/{senders.run_id}", lambda: self._queue.put(None)
        shelf = Shelf(job.objects, named, self._note, clocks.steady, woken=wake)
        self._publisher = Publisher(transport, post, self._topics, folder, job.round.keep_published, there, shelf)
        rows = ledger.rounds()
        self._archive = Archive.of(folder, ledger, job, rows)
        self._model = GlobalModel(Learning.of(prepared, senders.run_id), self._archive, len(rows), prepared.adder)
        self._objects = self._archive.objects
        # Who took part is waited for at the end: also those whose last word an earlier life did not hear.
        part = {node: row.round for row in rows for node in row.participants}
        # In rounds that are none of the method's own nodes go once over their rows, however few steps others have.
        untimed = frozenset(job.phases)
        self._machine: RoundMachine = RoundMachine(job.round, job.seed, len(rows), seen=set(part), untimed=untimed)
        self._machine.turns, self._machine.masked = part, job.secure_aggregation is not None
        self._chunk_bytes, self._opened_at = job.round.chunk_bytes, clocks.steady()
        self._pace, self._ended, self._stopping = Pace(), False, False
        self.view = RunView(job.run, job.method.name, job.round.rounds, notes=prepared.notes, phases=job.phases)
        self.view.security = security(tls=is_encrypted(job.broker.url), signed=senders.signed)
        self._measuring = Measuring(job, ledger, self._archive, self.view)
        self._machine.judging = self._measuring.judging
        if rows:
            self.view.digest = self._objects[rows[-1].round, "whole"].digest
        self._showing = showing = Showing(self.view, self._machine, clocks, observer)
        self._control = Control(
            ledger, self._machine, self.view, clocks, do=self._do, show=showing.show, tell=showing.told
        )
        self._working = Working(ledger, lambda line: self.tell("work", line, kept=False))
        self._secure = Leading(job, ledger, self._publisher.reply, self._note, clocks.steady)
        uploads = Uploads(job.objects, f"{named}-updates", self._note, clocks.steady, woken=wake)
        kept = Kept(folder, ledger, self._objects, self._secure, uploads)
        self._reception = Reception(job, kept, self._machine, senders, self._publisher, self.view, self._note, clocks)
        self._reception.plan = self._plan = ledger.plan(len(rows) + 1)
        self._rivals = Rivals(senders.run_id, None if key is None else key.public, self._publisher, self._note)

    def run(self) -> RunView:
        """Serve until the run has ended; the final view.

        Raises:
            FedkrsoError: The run cannot go on. Everything acknowledged is in the ledger; `resume` continues.
        """
        first = self._plan_of(self._machine.round, (), 0.0)
        self._measuring.start(first, self._model_folder, self._queue.put)
        for topic_filter in (self._topics.status("+"), self._topics.up("+", "#"), self._topics.plan):
            self._transport.subscribe(topic_filter)
        self._transport.start(self._hear)
        try:
            with written(self._folder):
                self._begin(self._transport.wait_connected(CONNECT_SECONDS), first)
                while not self._stopping and not (self._ended and self._publisher.over and not self._measuring.pending):
                    self._turn()
                self._reception.stop()
        finally:
            for one in (self._measuring, self._working, self._transport):
                one.stop()
            refuse_all(self._queue)
        return self.view

    def _begin(self, limits: Limits, first: Plan) -> None:
        """The link is up: look at the broker, and go on with the round that was open."""
        there, settings = (self._transport, self._queue, self._topics.probe), self._measuring.job.round
        published = self._machine.published
        self._chunk_bytes, self._publisher.most_bytes = settled(*there, limits, settings.chunk_bytes, self._note)
        plan = self._plan if published < settings.rounds else None
        remember(self._machine, self._ledger, plan, self._measuring.job, self._senders.revoked, self._clocks)
        if plan is not None:
            self._secure.opened(plan)
        elif 0 < published < settings.rounds:
            # The plan at the broker may say that the run is finished: whoever comes would leave at once.
            self._publisher.plan(first)
        self._judge()

    def command(self, command: Command, by: str) -> Future[Answer]:
        """Ask the loop to obey an operator, from any thread; the answer comes when the command is done and in the
        ledger.

        Args:
            command: What is to be done.
            by: Who says so, for the event log.
        """
        asked = Asked(command, by)
        self._queue.put(asked)
        return asked.answer

    def stop(self) -> None:
        """Have `run` return at the next turn of the loop, from any thread; nothing is announced as finished."""
        self._stopping = True

    def tell(self, kind: str, text: str, *, kept: bool) -> None:
        """Show at once what happened elsewhere than on the wire, from the loop's own thread; `kept`: in the log too."""
        self._note(kind, "", text) if kept else self._showing.happened(kind, text)
        self._showing.show()

    def _hear(self, event: TransportEvent) -> None:
        """In the transport's thread."""
        if not isinstance(event, Received) or self._gate.admits(event):
            self._queue.put(event)

    def _turn(self) -> None:
        idle = self._reception.serve() and self._publisher.flush()
        try:
            event = self._queue.get(timeout=self._pace.wait_seconds() if idle else _FLUSH_SECONDS)
        except queue.Empty:
            event = None
        match event:
            case Received(self._topics.plan):
                self._rivals.heard(event, announced=self._plan is not None)
            case Received(topic, payload, _):
                self._gate.taken(event)
                self._feed(*self._reception.received(topic, payload))
            case Connected():
                self._publisher.again(self._plan, self._objects)
            case Disconnected(reason):
                self._note("link", "", reason)
            case Denied(topic_filter) if topic_filter != self._topics.plan:
                denied(event, self._note)
            case Evaluated():
                self._measuring.evaluated(event)
                self._showing.show()
                self._judge()
            case Failed():
                raise error_of(event)
            case Ready() | WorkerDied():
                self._measuring.heard(event)
            case Asked():
                self._control.obey(event)
        # However much is coming in, deadlines are looked at.
        if self._pace.is_due(idle=self._queue.empty()):
            with self._pace.looking():
                self._tick()

    def _tick(self) -> None:
        for node, text in self._gate.struck():
            self._note("flood", node, text)
        self._feed(*self._reception.idle(quiet=self._queue.empty()), *self._secure.tick(), e.Tick())
        if found := self._secure.sum():
            self._end(found.plan, self._model.close_sum(found, self._chunk_bytes))
        if done := self._working.done():
            self._end(done.plan, self._model.close(done.plan, done.updates, self._chunk_bytes, done))
        self._measuring.tick()
        self._showing.show()

    def _feed(self, *events: e.Event) -> None:
        acted = False
        for event in events:
            for action in self._machine.handle(event, self._clocks.steady()):
                self._do(action)
                acted = True
        # All else that is new is seen when the loop looks at the time.
        if acted:
            self._showing.show()

    def _do(self, action: e.Action) -> None:
        match action:
            case e.OpenRound(server_round, cohort, deadline_at):
                self._open(server_round, cohort, deadline_at)
            case e.CloseRound(server_round, participants):
                self._close(server_round, participants)
            case e.Silent(node):
                self._note("silent", node, action.words)
            case e.FinishRun():
                self._finish()
            case e.EndRun():
                if self._plan is not None:
                    self._measuring.pool(self._machine.published, self._plan.task)
                self._ended = True

    def _open(self, server_round: int, cohort: tuple[str, ...], deadline_at: float) -> None:
        clocks = self._clocks
        self._opened_at, self._reception.uplink_bytes, self._publisher.sent_bytes = clocks.steady(), 0, 0
        deadline_at = clocks.wall_of(deadline_at)
        self.view.round_opened_at, self.view.deadline_at = clocks.wall(), deadline_at
        self._model.begin(server_round, self._chunk_bytes, lambda text: self._note("disk", "", text))
        plan = self._plan_of(server_round, cohort, deadline_at)
        self._ledger.put_plan(plan)
        self._secure.opened(plan)
        self._announce(plan)
        self._archive.tidy(plan, self._measuring.reading)

    def _finish(self) -> None:
        plan = self._plan_of(self._machine.published, (), 0.0)
        # The last state is measured however often the others are.
        asked = None if plan.evaluation is None else msgspec.structs.replace(plan.evaluation, due=True)
        self._announce(msgspec.structs.replace(plan, phase="finished", evaluation=asked))
        for spent in (row.privacy for row in self.view.rows[-1:] if row.privacy is not None):
            self._note("privacy", "", spent.words())
        # Whoever comes when this coordinator has ended finds it at the broker.
        self._publisher.last_state(plan, self._objects)
        self._measuring.published(plan, last=True)

    def _announce(self, plan: Plan) -> None:
        self._plan = self._reception.plan = plan
        self._publisher.plan(plan)

    def _plan_of(self, server_round: int, cohort: tuple[str, ...], deadline_at: float) -> Plan:
        return self._model.plan(server_round, cohort, deadline_at, self._chunk_bytes)

    def _close(self, server_round: int, participants: tuple[str, ...]) -> None:
        plan = self._plan
        assert plan is not None
        self._showing.show()  # A large sum takes seconds: whoever looks sees why nothing else changes.
        self._reception.round_over()
        counted = frozenset(participants)
        rows = counting(self._ledger, server_round, plan.max_staleness)
        updates = [row for row in rows if row.header.node in counted]
        if plan.secure is not None:
            # The rest comes with the nodes' answers.
            self._secure.close({row.header.node: self._folder.root / row.file for row in updates})
        elif (order := self._model.order(plan, updates)) is not None:
            self._working.begin(order)
        else:
            self._end(plan, self._model.close(plan, updates, self._chunk_bytes))

    def _end(self, plan: Plan, closed: Closed) -> None:
        row = msgspec.structs.replace(
            closed.row,
            uplink_bytes=self._reception.uplink_bytes,
            downlink_bytes=self._publisher.sent_bytes,
            seconds=self._clocks.steady() - self._opened_at,
            privacy=None if self._private is None else self._private.spent(self.view.rows, closed.row.participants),
        )
        self._measuring.keep(plan.version, closed.measured)
        self._model.publish(closed.objects, row)
        self.view.digest = closed.objects[0].digest
        for note in closed.notes():
            self._note(*note)
        self._publisher.published_state(plan.round, self._objects, lambda: self._is_out(plan, row))

    def _is_out(self, plan: Plan, row: RoundRow) -> None:
        """The state that a round came to lies where nodes find it."""
        self._measuring.take(msgspec.structs.replace(row, downlink_bytes=self._publisher.sent_bytes))
        self._measuring.published(plan)
        self._judge()
        self._feed(e.RoundPublished(plan.round))

    def _judge(self) -> None:
        """Tell the round machine how the run stands, where it may end early; and a person that it stands badly."""
        self._measuring.warn(self._note)
        self._feed(*self._measuring.judged(self._machine, self._model, self._note))

    def _note(self, kind: str, node: str, text: str, server_round: int | None = None) -> None:
        self.view.counts[kind] = self.view.counts.get(kind, 0) + 1
        number = self._machine.round if server_round is None else server_round
        if (event := self._log.note(kind, node, number, text)) is not None:
            self._showing.told(event)
