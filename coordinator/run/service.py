# SPDX-License-Identifier: Apache-2.0
"""The coordinator's shell: one loop that takes events from the wire, the evaluator and the clock, and does what the
round machine says.

Order of things that decide the model: file flushed and renamed, then the ledger, then the wire. So a kill at any
instant loses no acknowledged update and publishes nothing that a resumed run would not publish again, bit for bit."""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future

import msgspec

from coordinator.messages.probe import usable_chunk_bytes
from coordinator.messages.publisher import Publisher
from coordinator.messages.reception import Kept, Reception
from coordinator.messages.senders import Senders
from coordinator.rounds.events import (
    Action,
    Arriving,
    CloseRound,
    EndRun,
    Event,
    FinishRun,
    Judged,
    OpenRound,
    RoundPublished,
    Tick,
)
from coordinator.rounds.machine import RoundMachine
from coordinator.run.archive import Archive
from coordinator.run.control import Answer, Asked, Command, Control, refuse_all
from coordinator.run.measuring import Measuring
from coordinator.run.model import GlobalModel, Learning
from coordinator.run.prepare import Prepared
from coordinator.store.eventlog import EventLog
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import Ledger
from coordinator.store.view import EventView, RunView
from fedcore.errors import StorageError, WorkerError
from fedcore.round.plan import Plan
from fedcore.system.durable import is_full
from fedcore.transport.base import CONNECT_SECONDS, Connected, Disconnected, Received, Transport, TransportEvent
from fedcore.wire.identity import SigningKey, security
from fedcore.wire.messages import Topics
from fedcore.wire.post import Post, start_number
from fedcore.worker.failures import error_of
from fedcore.worker.messages import Evaluated, Failed, Ready
from fedcore.worker.messages import Event as WorkerEvent
from fedcore.worker.process import WorkerDied

__all__ = ["Service"]

_TICK_SECONDS = 0.25
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
        senders: Senders,
        key: SigningKey | None = None,
        clock: Callable[[], float] = time.time,
        observer: Callable[[RunView], None] = lambda view: None,
    ) -> None:
        job = prepared.job
        self._job, self._schema, self._folder, self._ledger = job, prepared.schema, folder, ledger
        self._model_folder = prepared.model_folder
        self._transport, self._clock, self._observer = transport, clock, observer
        self._topics = Topics(job.run)
        self._senders, self._log = senders, EventLog(ledger)
        start = start_number(ledger.fact("start", int) or 0, clock())
        ledger.put_fact("start", start)
        post = Post(job.run, "", key, start)
        self._publisher = Publisher(transport, post, self._topics, folder, job.round.keep_published, self._listeners)
        rows = ledger.rounds()
        self._archive = Archive(folder, ledger, job.round.keep_published, job.round.keep_updates)
        self._model = GlobalModel(Learning.of(prepared), self._archive, len(rows))
        self._objects = self._archive.objects
        # Who took part is waited for at the end, also when an earlier life of this coordinator did not hear their last
        # word.
        part = {node for row in rows for node in row.participants}
        self._machine = RoundMachine(job.round, job.seed, published=len(rows), seen=part)
        self._plan: Plan | None = ledger.plan(len(rows) + 1)
        self._queue: queue.Queue[TransportEvent | WorkerEvent | WorkerDied | Asked] = queue.Queue()
        self._ticked_at = 0.0
        self._chunk_bytes = job.round.chunk_bytes
        self._opened_at = clock()
        self._ended = self._stopping = False
        protected = security(tls=job.broker.url.startswith("mqtts:"), signed=senders.signed)
        self.view = RunView(job.run, job.method.name, job.round.rounds, security=protected, notes=prepared.notes)
        self._measuring = Measuring(job, ledger, self._archive, self.view)
        self._machine.judging = self._measuring.judging
        if rows:
            self.view.digest = self._objects[rows[-1].round, "whole"].digest
        self._control = Control(ledger, self._machine, self.view, clock, do=self._do, show=self._show, tell=self._told)
        kept = Kept(folder, ledger, self._objects)
        self._reception = Reception(job, kept, self._machine, senders, self._publisher, self.view, self._note, clock)
        self._reception.plan = self._plan

    def run(self) -> RunView:
        """Serve until the run has ended; the final view.

        Raises:
            FedkrsoError: The run cannot go on. Everything acknowledged is in the ledger; `resume` continues.
        """
        first = self._plan_of(self._machine.round, (), 0.0)
        self._measuring.start(first, self._model_folder, self._queue.put)
        self._transport.subscribe(self._topics.status("+"))
        self._transport.subscribe(self._topics.up("+", "#"))
        self._transport.start(self._queue.put)
        try:
            limits = self._transport.wait_connected(CONNECT_SECONDS)
            nonce = secrets.token_bytes(16)
            wanted = self._job.round.chunk_bytes
            self._chunk_bytes = usable_chunk_bytes(
                self._transport, self._queue, self._topics.probe, limits, wanted, nonce
            )
            if self._chunk_bytes < wanted:
                self._note("link", "", f"the broker takes chunks of {self._chunk_bytes} bytes, not {wanted}")
            if self._plan is not None and self._machine.published < self._job.round.rounds:
                rows = self._ledger.updates(self._plan.round)
                accepted = {row.header.node for row in rows if not self._senders.revoked(row.header.node)} & set(
                    self._plan.cohort
                )
                self._machine.resume_open(self._plan.cohort, accepted, self._plan.deadline_at)
            elif self._machine.published and self._machine.published < self._job.round.rounds:
                # The plan at the broker may say that the run is finished: whoever comes would leave at once.
                self._publisher.plan(first)
            self._judge()
            while not self._stopping and not (self._ended and not self._measuring.pending):
                self._turn()
        except OSError as error:
            if not is_full(error):
                raise
            remedy = f"free space there, then: fedkrso coordinator resume {self._job.run}"
            raise StorageError(
                f"the disk is full: {error.strerror}", place=str(self._folder.root), remedy=remedy
            ) from None
        finally:
            self._measuring.stop()
            self._transport.stop()
            refuse_all(self._queue)
        return self.view

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

    def _turn(self) -> None:
        try:
            event = self._queue.get(timeout=_TICK_SECONDS if self._publisher.flush() else _FLUSH_SECONDS)
        except queue.Empty:
            self._tick()
            return
        match event:
            case Received(topic, payload, _):
                self._feed(*self._reception.received(topic, payload))
            case Connected():
                # A broker without persistence has forgotten what was retained.
                self._publisher.forgotten()
                if self._machine.published and self._objects:
                    self._publisher.published_state(self._machine.published, self._objects)
                if self._plan is not None:
                    self._publisher.plan(self._plan)
            case Disconnected(reason):
                self._note("link", "", reason)
            case Evaluated():
                self._measuring.evaluated(event)
                self._observer(self.view)
                self._judge()
            case Failed():
                raise error_of(event)
            case WorkerDied(_, returncode, tail):
                last = tail.splitlines()[-1] if tail else "no output"
                raise WorkerError(f"the evaluation process ended with {returncode}: {last}")
            case Ready():
                self._measuring.ready(event)
            case Asked():
                self._control.obey(event)
            case _:
                # Adopted: the answer that counts is the one to what follows.
                pass
        # However much is coming in, deadlines are looked at.
        if self._queue.empty() or time.monotonic() - self._ticked_at > _TICK_SECONDS:
            self._tick()

    def _tick(self) -> None:
        self._ticked_at = time.monotonic()
        self._feed(*self._reception.idle(quiet=self._queue.empty()), Tick())

    # What the round machine says

    def _feed(self, *events: Event) -> None:
        for event in events:
            for action in self._machine.handle(event, self._clock()):
                self._do(action)
        if events and all(isinstance(event, Arriving) for event in events):
            # A chunk changes nothing that is shown.
            return
        self._show()

    def _show(self) -> None:
        view, machine = self.view, self._machine
        view.phase, view.round = machine.phase, machine.round
        view.cohort, view.accepted = machine.cohort, tuple(sorted(machine.accepted))
        view.paused, view.excluded = machine.paused, tuple(sorted(machine.excluded))
        self._observer(view)

    def _do(self, action: Action) -> None:
        match action:
            case OpenRound(server_round, cohort, deadline_at):
                self._open(server_round, cohort, deadline_at)
            case CloseRound(server_round, participants):
                self._close(server_round, participants)
            case FinishRun():
                self._finish()
            case EndRun():
                if self._plan is not None:
                    self._measuring.pool(self._machine.published, self._plan.task)
                self._ended = True
            case Answer():
                # Of a command, told by whoever handles it.
                pass

    def _open(self, server_round: int, cohort: tuple[str, ...], deadline_at: float) -> None:
        self._opened_at, self._reception.uplink_bytes, self._publisher.sent_bytes = self._clock(), 0, 0
        self.view.round_opened_at, self.view.deadline_at = self._opened_at, deadline_at
        self._model.begin(server_round, self._chunk_bytes, lambda text: self._note("disk", "", text))
        plan = self._plan_of(server_round, cohort, deadline_at)
        self._ledger.put_plan(plan)
        self._announce(plan)
        self._archive.tidy(plan, self._measuring.reading)

    def _finish(self) -> None:
        plan = self._plan_of(self._machine.published, (), 0.0)
        # The last state is measured however often the others are.
        asked = None if plan.evaluation is None else msgspec.structs.replace(plan.evaluation, due=True)
        self._announce(msgspec.structs.replace(plan, phase="finished", evaluation=asked))
        self._measuring.published(plan, last=True)

    def _announce(self, plan: Plan) -> None:
        self._plan = self._reception.plan = plan
        self._publisher.plan(plan)

    def _plan_of(self, server_round: int, cohort: tuple[str, ...], deadline_at: float) -> Plan:
        return self._model.plan(server_round, cohort, deadline_at, self._chunk_bytes)

    def _close(self, server_round: int, participants: tuple[str, ...]) -> None:
        plan = self._plan
        assert plan is not None
        # A large sum takes seconds: whoever looks sees why nothing else changes.
        self._show()
        self._reception.round_over()
        updates = [row for row in self._ledger.updates(server_round) if row.header.node in participants]
        closed = self._model.close(plan, updates, self._chunk_bytes)
        row = msgspec.structs.replace(
            closed.row,
            uplink_bytes=self._reception.uplink_bytes,
            downlink_bytes=self._publisher.sent_bytes,
            seconds=self._clock() - self._opened_at,
        )
        self._measuring.keep(plan.version, closed.measured)
        self._model.publish(closed.objects, row)
        for node, (claimed, weight) in row.capped.items():
            self._note(
                "capped",
                node,
                f"round {server_round}: {claimed} examples count as {weight}, at most {closed.limit} may",
            )
        self.view.digest = closed.objects[0].digest
        self._publisher.published_state(server_round, self._objects)
        self._ledger.put_round(msgspec.structs.replace(row, downlink_bytes=self._publisher.sent_bytes))
        self._measuring.take_rows()
        self._measuring.published(plan)
        self._judge()
        self._feed(RoundPublished(server_round))

    def _judge(self) -> None:
        """Tell the round machine how the run stands, where it may end early."""
        standing = self.view.standing
        if standing is not None and self._machine.judging:
            self._feed(Judged(standing.judged, standing.stop_at))

    def _listeners(self) -> int:
        return sum(node.online for node in self.view.nodes.values())

    def _note(self, kind: str, node: str, text: str, server_round: int | None = None) -> None:
        self.view.counts[kind] = self.view.counts.get(kind, 0) + 1
        event = self._log.note(
            self._clock(), kind, node, self._machine.round if server_round is None else server_round, text
        )
        if event is not None:
            self._told(event)

    def _told(self, event: EventView) -> None:
        self.view.events = [*self.view.events[-49:], event]
        self._observer(self.view)
