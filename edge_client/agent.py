# SPDX-License-Identifier: Apache-2.0
"""The agent: a light process that talks MQTT, supervises the worker and keeps what must not be lost on disk.

It imports neither torch nor numpy: files stream through it chunk by chunk, so its memory does not grow with the model.
"""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable
from pathlib import Path

import edge_client.session as s
from devices.identity import device_name
from edge_client.courier import Courier
from edge_client.mail import Mail
from edge_client.memory.probes import own_peak_rss_bytes, own_rss_bytes
from edge_client.node import Node
from edge_client.outbox import Outbox
from edge_client.storage import Storage, round_bytes
from edge_client.supervisor import Supervisor
from fedcore.config import parse_size
from fedcore.durable import is_full
from fedcore.errors import BaseDamaged, BudgetError, DataError, ExactnessError, FedkrsoError, ModelError, StorageError, WireError
from fedcore.identity import PublicKey, SigningKey
from fedcore.plan import OutcomeObject, Plan
from fedcore.transport.base import Connected, Disconnected, Received, Transport, TransportEvent
from fedcore.wire.messages import Ack, Chunk, Commit, Declined, Grant, Refuse, Status, Telemetry
from fedcore.worker import Adopt, Adopted, Described, Evaluated, Failed, Progress, Ready, Sketched, Trained, WorkerDied
from fedcore.worker import Event as WorkerEvent

__all__ = ["Agent"]

Supervise = Callable[[Node, Path, int, Callable[[WorkerEvent | WorkerDied], None], Callable[[str], None]], Supervisor]
_TICK_SECONDS = 0.25
_SAMPLE_SECONDS = 1.0
_STORAGE_SECONDS = 5.0
_FATAL = {kind.__name__ for kind in (DataError, ModelError)}


class Agent:
    """One node.

    Args:
        node: Its file.
        model_folder: Resolved checkpoint folder.
        budget_bytes: For agent and worker together.
        transport: A transport that is not started yet.
        jitter: Spreads this node's requests.
        key: Signs this node's messages; None in a run without keys.
        coordinator: Whose signature plans and outcomes must have; None in a run without keys.
        say: Gets one line for each thing that happens, for a person.
        supervise: Makes what starts and watches the worker; a simulation of many nodes has one without a worker.
        heartbeat: Called at every turn of the loop, with what the node is doing: for a watchdog.
    """

    def __init__(
        self,
        node: Node,
        model_folder: Path,
        budget_bytes: int,
        transport: Transport,
        jitter: random.Random,
        *,
        key: SigningKey | None = None,
        coordinator: PublicKey | None = None,
        say: Callable[[str], None] = lambda line: None,
        supervise: Supervise = Supervisor,
        heartbeat: Callable[[str], None] = lambda state: None,
    ) -> None:
        self._node, self._heartbeat = node, heartbeat
        self._transport, self._jitter, self._say = transport, jitter, say
        self._folder = Path(node.folder)
        self._mail = Mail(node, self._folder, transport, key, coordinator)
        self._storage = Storage(
            self._folder, parse_size(node.disk_limit, place="disk_limit"), parse_size(node.disk_reserve, place="disk_reserve")
        )
        self._outbox = Outbox(self._folder / "outbox")
        waiting, sent = self._outbox.waiting_round, self._outbox.sent_round
        self.session = s.Session(node.node, sent_round=sent, update_round=waiting)
        self._queue: queue.Queue[TransportEvent | WorkerEvent | WorkerDied] = queue.Queue()
        self._courier = Courier(self._outbox, self._folder / "inbox", transport, self._mail, jitter, self._fetched, self._gone)
        self._supervisor = supervise(node, model_folder, budget_bytes, self._queue.put, say)
        self._new_budget: int | None = None
        self._device = device_name()
        self._sample_at = self._storage_at = 0.0
        self._fatal: FedkrsoError | None = None
        self._stopping = False
        self._finished_at: float | None = None

    def stop(self) -> None:
        """Leave at the next turn of the loop (safe to call from a signal handler)."""
        self._stopping = True

    def set_budget(self, budget_bytes: int) -> None:
        """Another memory budget, from the next turn of the loop on (safe to call from a signal handler)."""
        self._new_budget = budget_bytes

    def run(self, *, leave_when_finished: bool = True) -> None:
        """Serve until stopped, or until the run is finished and its end is reported.

        Raises:
            FedkrsoError: The node's own data, model or budget is wrong: nothing that waiting would mend.
        """
        self._mail.subscribe()
        self._transport.start(self._queue.put, self._mail.will())
        try:
            self._transport.wait_connected(20.0)
            while not self._stopping and self._fatal is None:
                self._turn()
                if leave_when_finished and self._left_long_enough():
                    break
        finally:
            session = self.session
            state, version, generation, digest = session.state, session.version, session.generation, session.digest
            self._mail.tell(Status(online=False, state=state, version=version, generation=generation, digest=digest))
            self._transport.stop()
            self._supervisor.end()
        if self._fatal is not None:
            raise self._fatal

    def _left_long_enough(self) -> bool:
        """A finished node stays a moment, so that its last word is delivered."""
        if self.session.state != "finished":
            self._finished_at = None
            return False
        self._finished_at = self._finished_at or time.monotonic()
        return time.monotonic() > self._finished_at + 2.0

    def _turn(self) -> None:
        try:
            event = self._queue.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            pass
        else:
            self._stored(lambda: self._take(event))
        now = time.monotonic()
        self._heartbeat(self.session.state)
        if self._new_budget is not None:
            budget, self._new_budget = self._new_budget, None
            self._say(f"memory budget is now {budget / 2**20:,.0f} MiB")
            self._supervisor.lower_budget(budget)
            self._mail.tell(self._status())
        self._stored(lambda: self._courier.tick(now))
        if self.session.state == "full" and now >= self._storage_at:
            self._storage_at = now + _STORAGE_SECONDS
            self._look_for_room()
        if now >= self._sample_at:
            self._sample_at = now + _SAMPLE_SECONDS
            self._sample()

    def _take(self, event: TransportEvent | WorkerEvent | WorkerDied) -> None:
        match event:
            case Received(topic, payload, _):
                self._received(topic, payload)
            case Connected(limits):
                self._say(f"connected ({limits.protocol}; {self._mail.security})")
                self._mail.tell(self._status())
                self._courier.link_came(limits)
            case Disconnected(reason):
                self._say(f"disconnected: {reason}")
            case Sketched():
                self._guarded(lambda: self._supervisor.sketched(event))
            case Ready(version=version, generation=generation, digest=digest, examples=examples):
                self._supervisor.ready(event)
                self._say(f"model loaded, {examples} examples, version {version}")
                self._feed(s.WorkerReady(version, generation, digest))
            case Adopted(version, generation, digest):
                self._say(f"version {version} {digest[:12]}")
                self._feed(s.Adopted(version, generation, digest))
            case Progress():
                self._supervisor.progressed(event, time.monotonic())
            case Trained(server_round, _, examples, loss, seconds, restored):
                before = f", {restored} intervals from before" if restored else ""
                self._say(f"round {server_round} trained on {examples} examples in {seconds:.1f} s{before}, loss {loss:.3f}")
                if not self._node.keep_worker:
                    self._end_worker()
                self._outbox.seal(server_round)
                self._feed(s.UpdateReady(server_round))
            case Failed():
                self._failed(event)
            case WorkerDied(pid) if self._supervisor.is_worker(pid):
                self._worker_died(event)
            case Evaluated() | Described() | WorkerDied():
                pass

    # From the wire

    def _received(self, topic: str, payload: bytes) -> None:
        if not payload:
            return
        try:
            body = self._mail.open(topic, payload)
        except WireError as error:
            self._say(f"refused a message on {topic}: {error.one_line()}")
            return
        match body:
            case Plan() if topic in (self._mail.topics.plan, self._mail.topics.down(self._node.node, "plan")):
                self._say(f"plan of round {body.round} ({body.phase})")
                self._feed(s.PlanArrived(body))
            case Grant() | Ack() | Commit() | Refuse() | Chunk():
                self._courier.handle(body, time.monotonic())

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
            case s.AdoptObject(obj):
                path = str(self._courier.object_path(obj))
                self._supervisor.adopt(Adopt(path, obj.version, obj.generation, obj.kind, obj.digest))
            case s.TrainRound(plan):
                self._guarded(lambda: self._train(plan))
            case s.SendUpdate(server_round):
                assert self.session.plan is not None
                self._courier.send(server_round, self.session.plan.chunk_bytes, time.monotonic())
            case s.Decline(server_round, reason):
                self._say(f"declined round {server_round}: {reason}")
                self._mail.up("declined", Declined(reason), server_round)
            case s.TellStatus():
                self._mail.tell(self._status())

    def _fetch(self, obj: OutcomeObject) -> None:
        self._storage.require(obj.manifest.size_bytes, f"version {obj.version}")
        self._courier.fetch(obj, time.monotonic())

    def _train(self, plan: Plan) -> None:
        self._storage.require(round_bytes(plan), f"round {plan.round}")
        self._courier.forget_before(plan.round)
        self._supervisor.train(plan, self._outbox.path(plan.round))

    def _look_for_room(self) -> None:
        """Go on as soon as what was declined would fit."""
        assert self.session.plan is not None
        try:
            self._storage.require(round_bytes(self.session.plan), "a round")
        except StorageError:
            return
        self._say("there is room on the disk again")
        self._feed(s.StorageFree())

    def _stored(self, act: Callable[[], None]) -> None:
        """Do something that writes; a full disk is a state of the session. What was written before stays."""
        try:
            act()
        except OSError as error:
            if not is_full(error):
                raise
            self._courier.pause()
            self._storage_full(StorageError(f"the disk is full: {error.strerror}", place=str(self._folder), remedy="free space there"))

    def _storage_full(self, error: StorageError) -> None:
        self._say(error.one_line())
        self._feed(s.StorageFull(error.one_line()))

    def _guarded(self, act: Callable[[], None]) -> None:
        """Do something for the session; what does not fit the budget or the disk fails like a command of the worker."""
        try:
            act()
        except FedkrsoError as error:
            self._queue.put(Failed(type(error).__name__, error.message, error.place, error.remedy, error.exit_code))

    def _failed(self, event: Failed) -> None:
        self._say(f"{event.place}: {event.message}" if event.place else event.message)
        if event.error == StorageError.__name__:
            self._feed(s.StorageFull(f"{event.message} ({event.remedy})"))
            return
        loading = self.session.state == "loading"
        if event.error in _FATAL or (loading and event.error in (ExactnessError.__name__, BudgetError.__name__)):
            self._mail.up("declined", Declined(event.message), self.session.plan.round if self.session.plan else 0)
            self._fatal = FedkrsoError(event.message, place=event.place, remedy=event.remedy)
            self._fatal.exit_code = event.exit_code  # type: ignore[misc]
            return
        not_equal = event.error in (ExactnessError.__name__, BaseDamaged.__name__)
        self._feed(s.WorkerFailed(event.message, died=False, not_equal=not_equal))

    def _worker_died(self, event: WorkerDied) -> None:
        why = self._supervisor.died(event)
        last = f": {event.tail.splitlines()[-1]}" if event.tail and event.returncode > 0 else ""
        self._say(f"{why}{last}")
        if self.session.worker_ready or self.session.state == "loading":
            self._feed(s.WorkerFailed(why, died=True))

    def _end_worker(self) -> None:
        self._supervisor.end()
        self.session.worker_ready = False

    def _fetched(self, sha256: str) -> None:
        self._feed(s.Fetched(sha256))

    def _gone(self, server_round: int, refused: str) -> None:
        self._outbox.sent(server_round)
        self._say(f"update of round {server_round} {'refused: ' + refused if refused else 'committed'}")
        self._feed(s.UpdateGone(server_round, refused))

    # To the wire

    def _status(self) -> Status:
        session = self.session
        return Status(
            online=True,
            state=session.state,
            device=self._device,
            version=session.version,
            generation=session.generation,
            digest=session.digest,
            budget_bytes=self._supervisor.monitor.budget_bytes,
            enclosure=self._supervisor.enclosure,
            reason=session.reason,
            security=self._mail.security,
        )

    def _sample(self) -> None:
        supervisor = self._supervisor
        reading, progress = supervisor.sample(time.monotonic()), supervisor.progress
        numbers = Telemetry(
            state=self.session.state,
            step=progress.step,
            steps=progress.steps,
            loss=progress.loss if progress.step else None,
            agent_rss_bytes=own_rss_bytes(),
            agent_peak_rss_bytes=own_peak_rss_bytes() or own_rss_bytes(),
            worker_bytes=reading.worker_bytes,
            peak_bytes=supervisor.peak_bytes,
            budget_bytes=supervisor.monitor.budget_bytes,
            available_bytes=reading.device_available_bytes,
            pressure_percent=reading.pressure_percent,
            parts=supervisor.parts,
            version=self.session.version,
            generation=self.session.generation,
            digest=self.session.digest,
            plan=self.session.plan.key if self.session.plan is not None else "",
            uplink_bytes=self._mail.uplink_bytes,
            downlink_bytes=self._mail.downlink_bytes,
        )
        self._mail.up("telemetry", numbers, self.session.plan.round if self.session.plan else 0)
