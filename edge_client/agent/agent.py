# SPDX-License-Identifier: Apache-2.0
"""The agent: a light process that talks MQTT, supervises the worker and keeps what must not be lost on disk.

It imports neither torch nor numpy: files stream through it chunk by chunk, so its memory does not grow with the model.
"""

from __future__ import annotations

import queue
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import edge_client.agent.events as s
from devices.detection import detect
from edge_client.agent import lines
from edge_client.agent.failures import event_of
from edge_client.agent.hearing import Hearing
from edge_client.agent.lines import Callbacks
from edge_client.agent.messages import Keys, Messages
from edge_client.agent.outbox import Outbox
from edge_client.agent.resting import Farewell, Resting, Surroundings, patience_seconds
from edge_client.agent.session import Session
from edge_client.agent.storage import Storage, round_bytes
from edge_client.agent.telemetry import Telling
from edge_client.agent.transfers import Transfers
from edge_client.fetching.servers import Servers
from edge_client.node import Node
from edge_client.owner.policy import PolicySection
from edge_client.process.packages import import_failure
from edge_client.process.paths import artefact_path
from edge_client.process.supervisor import Supervisor
from edge_client.secure.work import Ways, Work
from fedcore.errors import FedkrsoError, StorageError
from fedcore.round.measurement import Measurement
from fedcore.round.plan import Plan, PublishedObject, address_of
from fedcore.system.durable import flush_folder, is_full, sha256_of
from fedcore.transport.base import CONNECT_SECONDS, Connected, Denied, Disconnected, Received, Transport, TransportEvent
from fedcore.transport.events import EventQueue
from fedcore.wire.messages import Ack, Chunk, Commit, Declined, Grant, Refuse, Welcome
from fedcore.wire.secure import SecureAgreed, SecureRelay, SecureRoster, SecureSurvivors
from fedcore.worker.failures import error_of, failure_of
from fedcore.worker.messages import Adopt, Adopted, Failed, MeasuredState, Progress, Ready, Traced, Trained
from fedcore.worker.messages import Event as WorkerEvent
from fedcore.worker.process import WorkerDied

__all__ = ["Agent", "Supervise"]

Supervise = Callable[[Callable[[WorkerEvent | WorkerDied], None], Callable[[str], None]], Supervisor]
"""Makes what starts and watches the worker, of who hears the worker and who hears what happens:
`partial(Supervisor, node, model_folder, budget_bytes)`, or one without a worker in a simulation of many nodes."""
_SAMPLE_SECONDS = 1.0
_WAITING_BYTES = 2**18  # messages that wait: about one chunk


class Agent:
    """One node.

    Args:
        node: Its file.
        transport: A transport that is not started yet.
        jitter: Spreads this node's requests.
        supervise: Makes what starts and watches the worker.
        keys: Sign what it says, and check what it hears; none in a run without keys.
        callbacks: Who hears of it on this machine; nobody by default.
        surroundings: This machine and its clock by default.
    """

    def __init__(
        self,
        node: Node,
        transport: Transport,
        jitter: random.Random,
        supervise: Supervise,
        *,
        keys: Keys | None = None,
        callbacks: Callbacks | None = None,
        surroundings: Surroundings | None = None,
    ) -> None:
        keys, callbacks, surroundings = keys or Keys(), callbacks or Callbacks(), surroundings or Surroundings()
        self._node = node
        self._transport, self._say, self._heartbeat = transport, callbacks.say, callbacks.heartbeat
        self._folder = Path(node.folder)
        self._messages = Messages(node, self._folder, transport, keys.own, keys.coordinator)
        self._storage = Storage.of(node)
        # What was sent in another run says nothing of this one: a node serves run after run from one folder.
        self._outbox = Outbox(self._folder / "outbox" / node.run)
        self._outbox.begin(self._messages.membership.run_id)
        self._hearing = Hearing(self._messages, node.node, self._say)
        waiting, sent = self._outbox.waiting_round, self._outbox.sent_round
        self._artefact_path = artefact_path(self._folder)
        artefact = sha256_of(self._artefact_path) if self._artefact_path.exists() else ""
        self.session = Session(node.node, sent_round=sent, update_round=waiting, artefact=artefact)
        self._queue: EventQueue[TransportEvent | WorkerEvent | WorkerDied | None] = EventQueue(_WAITING_BYTES)
        told = (lambda sha256: self._feed(s.Fetched(sha256))), self._gone, self._say
        self._transfers = Transfers(self._outbox, self._folder / "inbox", transport, self._messages, jitter, *told)
        self._transfers.servers = Servers(node.objects, lambda: self._queue.put(None))
        updates = self._transfers.send, self._transfers.drop_update
        ways = Ways(self._messages.up, self._outbox.path, *updates, self._say)
        required = node.trust.require_secure_aggregation
        self._work = Work(node.node, node.run, self._folder, keys.trust, ways, required=required)
        self._supervisor = supervise(self._queue.put, self._say)
        self._new_budget: int | None = None
        device = surroundings.device or detect()
        self._telling = Telling(node, self.session, self._supervisor, self._messages, device.facts.name, jitter)
        self._resting = Resting(node.policy, self._storage, device, surroundings.local_time, self.session, self._say)
        self._sample_at, self._stopping, self._steady = 0.0, False, surroundings.steady
        self._fatal: FedkrsoError | None = None
        self._farewell = Farewell()

    def stop(self) -> None:
        """Leave at the next turn of the loop (safe to call from a signal handler)."""
        self._stopping = True
        self._queue.put(None)  # wakes the loop

    def set_budget(self, budget_bytes: int) -> None:
        """Another memory budget, from the next turn of the loop on (safe to call from a signal handler)."""
        self._new_budget = budget_bytes
        self._queue.put(None)  # wakes the loop

    def set_policy(self, policy: PolicySection) -> None:
        """Another policy, from the next turn of the loop on (safe to call from a signal handler)."""
        self._resting.set_policy(policy)
        self._queue.put(None)  # wakes the loop

    def run(self, *, leave_when_finished: bool = True) -> None:
        """Serve until stopped, or until the run is finished and its end is reported.

        Raises:
            FedkrsoError: The node's own data, model or budget is wrong: nothing that waiting would mend.
        """
        self._messages.subscribe()
        self._resting.start()
        self._transport.start(self._queue.put, self._messages.will())
        try:
            self._transport.wait_connected(CONNECT_SECONDS)
            # Before a plan is looked at.
            self._resting.wait()
            self._look(self._steady())
            while not self._stopping and self._fatal is None:
                self._turn()
                if leave_when_finished and self._farewell.is_over(self.session, self._steady()):
                    break
        finally:
            self._telling.last_word()
            self._transport.stop()
            self._supervisor.end()
            self._resting.stop()
        if self._fatal is not None:
            raise self._fatal

    def _turn(self) -> None:
        try:
            patience = patience_seconds(self.session, self._transfers, self._supervisor)
            event = self._queue.get(min(patience, self._work.patience_seconds(self._steady())))
        except queue.Empty:
            pass
        else:
            self._stored(lambda: self._take(event))
        now = self._steady()
        self._heartbeat(self.session.state)
        if self._new_budget is not None:
            budget, self._new_budget = self._new_budget, None
            self._say(lines.budget_set(budget))
            self._supervisor.set_budget(budget)
            self._telling.tell()
        self._stored(lambda: self._work.tick(now))
        self._stored(lambda: self._transfers.tick(now))
        self._guarded(self._share)
        self._look(now)
        if now >= self._sample_at:
            self._sample_at = now + _SAMPLE_SECONDS
            self._telling.sample(now, self._resting.readings, self._hearing.refused)

    def _share(self) -> None:
        if self._supervisor.turn(busy=self.session.busy):
            self._feed(s.RoomWanted())

    def _look(self, at_seconds: float) -> None:
        """Rest or go on, as device and disk are now."""
        for event in self._resting.look(at_seconds, quiet=self._queue.empty()):
            self._stored(partial(self._feed, event))

    def _take(self, event: TransportEvent | WorkerEvent | WorkerDied | None) -> None:
        match event:
            case Received(topic, payload, _):
                self._received(topic, payload)
            case Connected(limits):
                self._hearing.linked(limits, "" if self.session.plan else self._node.run)
                self._telling.tell()
                self._transfers.link_came(limits)
            case Disconnected() | Denied():
                self._hearing.deaf(event)
            case Traced() if self._supervisor.running:
                self._guarded(lambda: self._supervisor.traced(event))
            case Ready():
                self._supervisor.ready(event)
                self._say(lines.loaded(event))
                self._feed(s.WorkerReady(event.version, event.generation, event.digest))
            case Adopted(version, generation, digest):
                self._say(lines.adopted(event))
                self._feed(s.Adopted(version, generation, digest))
            case Progress():
                self._supervisor.progressed(event, self._steady())
            case MeasuredState(version, measurement):
                self._say(lines.measured(event))
                self._feed(s.StateMeasured(version, measurement))
            case Trained():
                self._say(lines.trained(event))
                self._trained(event.round)
            case Failed():
                self._failed(error_of(event))
            case WorkerDied(pid) if self._supervisor.is_worker(pid):
                self._worker_died(event)

    # From the wire

    def _received(self, topic: str, payload: bytes) -> None:
        heard = self._hearing.take(topic, payload, self._steady())
        if heard is None:
            return
        if heard.other_run:
            self._feed(s.RunBegan())
        match heard.body:
            case Plan() as plan if self._work.takes(plan):
                self._say(lines.plan_arrived(plan))
                able = not self.session.rests and self.session.sent_round < plan.round
                self._stored(lambda: self._work.plan(plan, self._steady(), able=able))
                self._feed(s.PlanArrived(plan))
                self._telling.soon()
            case Welcome():
                self._telling.tell()
            case Grant() | Ack() | Commit() | Refuse() | Chunk() as body:
                self._transfers.handle(body, self._steady())
            case SecureRoster() | SecureRelay() | SecureSurvivors() | SecureAgreed() as body:
                self._stored(lambda: self._work.heard(body, self._steady()))

    # What the session says

    def _feed(self, event: s.Event) -> None:
        for action in self.session.handle(event):
            self._do(action)

    def _do(self, action: s.Action) -> None:
        match action:
            case s.Configure(plan):
                self._guarded(lambda: self._supervisor.configure(plan))
            case s.Fetch(obj):
                self._guarded(lambda: self._fetch(obj))
            case s.KeepArtefact(obj):
                self._transfers.object_path(obj).replace(self._artefact_path)
                flush_folder(self._folder)
                self._say(lines.artefact_fetched(obj))
            case s.AdoptObject(obj):
                path = str(self._transfers.object_path(obj))
                self._supervisor.adopt(Adopt(path, obj.version, obj.generation, obj.kind, obj.digest))
            case s.MeasureState():
                self._guarded(lambda: self._supervisor.measure(self._node.promised(action.plan)))
            case s.TrainRound(plan, measured):
                self._guarded(lambda: self._train(plan, measured))
            case s.SendUpdate(server_round):
                assert self.session.plan is not None
                if not self._work.send(self.session.plan):
                    self._transfers.send(server_round, self.session.plan.chunk_bytes, self._steady())
            case s.Decline(server_round, reason):
                self._say(lines.declined(action))
                self._messages.up("declined", Declined(reason), server_round)
            case s.LetGo():
                self._transfers.pause()
                self._supervisor.release()
            case s.EndWork():
                self._end_work()
            case s.TellStatus():
                self._telling.tell()

    def _end_work(self) -> None:
        self._work.end()
        self._transfers.stop()
        self._supervisor.end()
        # Nothing that the worker said before it ended is of this run.
        self._queue.forget(lambda event: not isinstance(event, TransportEvent))
        self._outbox.begin(self._messages.membership.run_id)

    def _fetch(self, obj: PublishedObject) -> None:
        self._storage.require(obj.manifest.size_bytes, f"version {obj.version}")
        self._transfers.fetch(obj, self._steady(), address_of(self.session.heard, obj))

    def _train(self, plan: Plan, measured: Measurement | None) -> None:
        self._storage.require(round_bytes(plan), f"round {plan.round}")
        self._transfers.forget_before(plan.round)
        self._supervisor.train(self._node.promised(plan), self._outbox.path(plan.round), measured)

    def _trained(self, server_round: int) -> None:
        # A worker whose round is over for this node may be at something else already, and goes on with that.
        ended = not self._node.keep_worker and self.session.state in ("training", "resting")
        if ended:
            self._supervisor.end()
        self._outbox.seal(server_round)
        self._feed(s.UpdateReady(server_round, worker_ended=ended))

    def _stored(self, act: Callable[[], None]) -> None:
        """Do something that writes; a full disk is a state of the session. What was written before stays."""
        try:
            act()
        except OSError as error:
            if not is_full(error):
                raise
            self._transfers.pause()
            full = StorageError(
                f"the disk is full: {error.strerror}", place=str(self._folder), remedy="free space there"
            )
            self._say(lines.disk_full(full))
            self._feed(s.MustRest("storage", full.one_line()))

    def _guarded(self, act: Callable[[], None]) -> None:
        """Do something for the session; what does not fit the budget or the disk fails like a command of the worker."""
        try:
            act()
        except FedkrsoError as error:
            self._queue.put(failure_of(error))

    def _failed(self, error: FedkrsoError) -> None:
        self._say(lines.worker_failed(error))
        event = event_of(error, loading=self.session.state == "loading")
        if event is None:
            self._give_up(error)
        else:
            self._feed(event)

    def _give_up(self, error: FedkrsoError) -> None:
        """End this node, for a reason that waiting would not mend; the coordinator hears it too."""
        self._messages.up("declined", Declined(error.message), self.session.plan.round if self.session.plan else 0)
        self._fatal = error

    def _worker_died(self, event: WorkerDied) -> None:
        why = self._supervisor.died(event)
        cannot_train = import_failure(event.tail) if event.returncode > 0 else None
        if cannot_train is not None:
            self._give_up(cannot_train)
            return
        self._say(lines.worker_died(event, why))
        if self.session.worker_ready or self.session.state == "loading":
            self._feed(s.WorkerFailed(why, died=True))

    def _gone(self, server_round: int, refused: str) -> None:
        self._work.gone(server_round)
        self._outbox.sent(server_round)
        self._say(lines.update_gone(server_round, refused))
        self._feed(s.UpdateGone(server_round, refused))
