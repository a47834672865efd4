# SPDX-License-Identifier: Apache-2.0
"""The agent: a light process that talks MQTT, supervises the worker and keeps what must not be lost on disk.

It imports neither torch nor numpy: files stream through it chunk by chunk, so its memory does not grow with the model.
"""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import edge_client.agent.events as s
from devices.base import Device
from devices.detection import detect
from edge_client.agent.messages import Messages
from edge_client.agent.outbox import Outbox
from edge_client.agent.session import Session
from edge_client.agent.storage import Storage, round_bytes
from edge_client.agent.telemetry import status, telemetry
from edge_client.agent.transfers import Transfers
from edge_client.node import Node
from edge_client.owner.policy import Conditions, PolicySection, Watch
from edge_client.owner.sensing import Sensing
from edge_client.process.packages import import_failure
from edge_client.process.paths import artefact_path
from edge_client.process.supervisor import Supervisor
from fedcore.config.reading import parse_size
from fedcore.errors import (
    ArtefactDamaged,
    BaseDamaged,
    BudgetError,
    ConfigError,
    DataError,
    ExactnessError,
    FedkrsoError,
    ModelError,
    OutOfMemory,
    StorageError,
    WireError,
)
from fedcore.round.plan import Plan, PublishedObject
from fedcore.system.durable import flush_folder, is_full, sha256_of
from fedcore.system.logs import Line
from fedcore.transport.base import Connected, Disconnected, Received, Transport, TransportEvent
from fedcore.wire.identity import PublicKey, SigningKey
from fedcore.wire.messages import Ack, Chunk, Commit, Declined, Grant, Refuse, Status
from fedcore.worker.failures import error_of, failure_of
from fedcore.worker.messages import Adopt, Adopted, Described, Evaluated, Failed, Progress, Ready, Traced, Trained
from fedcore.worker.messages import Event as WorkerEvent
from fedcore.worker.process import WorkerDied

__all__ = ["Agent", "Supervise"]

Supervise = Callable[[Node, Path, int, Callable[[WorkerEvent | WorkerDied], None], Callable[[str], None]], Supervisor]
_TICK_SECONDS = 0.25
_SAMPLE_SECONDS = 1.0
_STORAGE_SECONDS = 5.0
# A sensor that hangs does not keep a node from saying that it rests because of it.
_FIRST_READING_SECONDS = 5.0


class Agent:
    """One node.

    Args:
        node: Its file.
        model_folder: Resolved checkpoint folder.
        budget_bytes: For agent and worker together.
        transport: A transport that is not started yet.
        jitter: Spreads this node's requests.
        key: Signs this node's messages; None in a run without keys.
        coordinator: Whose signature plans and published states must have; None in a run without keys.
        say: Gets one line for each thing that happens, for a person.
        supervise: Makes what starts and watches the worker; a simulation of many nodes has one without a worker.
        heartbeat: Called at every turn of the loop, with what the node is doing: for a watchdog.
        device: The machine's facts and sensors; this one's by default.
        local_time: What the hours of `[policy]` are of.
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
        device: Device | None = None,
        local_time: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self._node, self._heartbeat = node, heartbeat
        self._transport, self._jitter, self._say = transport, jitter, say
        self._folder = Path(node.folder)
        self._messages = Messages(node, self._folder, transport, key, coordinator)
        self._storage = Storage(
            self._folder,
            parse_size(node.disk_limit, place="disk_limit"),
            parse_size(node.disk_reserve, place="disk_reserve"),
        )
        self._outbox = Outbox(self._folder / "outbox")
        waiting, sent = self._outbox.waiting_round, self._outbox.sent_round
        self._artefact_path = artefact_path(self._folder)
        artefact = sha256_of(self._artefact_path) if self._artefact_path.exists() else ""
        self.session = Session(node.node, sent_round=sent, update_round=waiting, artefact=artefact)
        self._queue: queue.Queue[TransportEvent | WorkerEvent | WorkerDied] = queue.Queue()
        self._transfers = Transfers(
            self._outbox, self._folder / "inbox", transport, self._messages, jitter, self._fetched, self._gone
        )
        self._supervisor = supervise(node, model_folder, budget_bytes, self._queue.put, say)
        self._new_budget: int | None = None
        device = device or detect()
        self._name, self._local_time = device.facts.name, local_time
        self._sensing = Sensing(device, lambda: self._watch.policy.idle_only)
        self._watch = Watch(node.policy)
        self._new_policy: PolicySection | None = None
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

    def set_policy(self, policy: PolicySection) -> None:
        """Another policy, from the next turn of the loop on (safe to call from a signal handler)."""
        self._new_policy = policy

    def run(self, *, leave_when_finished: bool = True) -> None:
        """Serve until stopped, or until the run is finished and its end is reported.

        Raises:
            FedkrsoError: The node's own data, model or budget is wrong: nothing that waiting would mend.
        """
        self._messages.subscribe()
        self._sensing.start()
        self._transport.start(self._queue.put, self._messages.will())
        try:
            self._transport.wait_connected(20.0)
            if self._watch.policy.asks:
                # Before a plan is looked at: a node that must not work does not begin to.
                self._sensing.wait(_FIRST_READING_SECONDS)
                self._stored(self._obey_policy)
            while not self._stopping and self._fatal is None:
                self._turn()
                if leave_when_finished and self._left_long_enough():
                    break
        finally:
            session = self.session
            state, version, generation, digest = session.state, session.version, session.generation, session.digest
            self._messages.tell(
                Status(online=False, state=state, version=version, generation=generation, digest=digest)
            )
            self._transport.stop()
            self._supervisor.end()
            self._sensing.stop()
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
            self._say(Line(f"memory budget is now {budget / 2**20:,.0f} MiB", event="budget", budget_bytes=budget))
            self._supervisor.set_budget(budget)
            self._tell()
        self._stored(lambda: self._transfers.tick(now))
        if "storage" in self.session.rests and now >= self._storage_at:
            self._storage_at = now + _STORAGE_SECONDS
            self._stored(self._look_for_room)
        if self._new_policy is not None:
            policy, self._new_policy = self._new_policy, None
            if policy != self._watch.policy:
                self._say(Line("the policy is another one now", event="policy"))
                self._watch = Watch(policy, working="policy" not in self.session.rests)
                self._stored(self._obey_policy)
        if now >= self._sample_at:
            self._sample_at = now + _SAMPLE_SECONDS
            self._stored(self._obey_policy)
            self._sample()

    def _take(self, event: TransportEvent | WorkerEvent | WorkerDied) -> None:
        match event:
            case Received(topic, payload, _):
                self._received(topic, payload)
            case Connected(limits):
                self._say(Line(f"connected ({limits.protocol}; {self._messages.security})", event="connected"))
                self._tell()
                self._transfers.link_came(limits)
            case Disconnected(reason):
                self._say(Line(f"disconnected: {reason}", event="disconnected", level="warning"))
            case Traced() if self._supervisor.running:
                self._guarded(lambda: self._supervisor.traced(event))
            case Ready(version=version, generation=generation, digest=digest, examples=examples):
                self._supervisor.ready(event)
                self._say(
                    Line(
                        f"model loaded, {examples} examples, version {version}",
                        event="loaded",
                        examples=examples,
                        version=version,
                    )
                )
                self._feed(s.WorkerReady(version, generation, digest))
            case Adopted(version, generation, digest):
                self._say(Line(f"version {version} {digest[:12]}", event="adopted", version=version, digest=digest))
                self._feed(s.Adopted(version, generation, digest))
            case Progress():
                self._supervisor.progressed(event, time.monotonic())
            case Trained(server_round, _, examples, loss, seconds, restored):
                before = f", {restored} intervals from before" if restored else ""
                words = (
                    f"round {server_round} trained on {examples} examples in {seconds:.1f} s{before}, loss {loss:.3f}"
                )
                self._say(
                    Line(
                        words,
                        event="trained",
                        round=server_round,
                        examples=examples,
                        seconds=round(seconds, 3),
                        loss=loss,
                    )
                )
                if not self._node.keep_worker:
                    self._end_worker()
                self._outbox.seal(server_round)
                self._feed(s.UpdateReady(server_round))
            case Failed():
                self._failed(error_of(event))
            case WorkerDied(pid) if self._supervisor.is_worker(pid):
                self._worker_died(event)
            case Evaluated() | Described() | Traced() | WorkerDied():
                pass

    # From the wire

    def _received(self, topic: str, payload: bytes) -> None:
        if not payload:
            return
        try:
            body = self._messages.open(topic, payload)
        except WireError as error:
            self._say(
                Line(f"refused a message on {topic}: {error.one_line()}", event="message_refused", level="warning")
            )
            return
        match body:
            case Plan() if topic in (self._messages.topics.plan, self._messages.topics.down(self._node.node, "plan")):
                self._say(Line(f"plan of round {body.round} ({body.phase})", event="plan", round=body.round))
                self._feed(s.PlanArrived(body))
            case Grant() | Ack() | Commit() | Refuse() | Chunk():
                self._transfers.handle(body, time.monotonic())

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
                self._say(
                    Line(
                        f"run artefact {obj.manifest.sha256[:12]} fetched",
                        event="artefact",
                        size_bytes=obj.manifest.size_bytes,
                    )
                )
            case s.AdoptObject(obj):
                path = str(self._transfers.object_path(obj))
                self._supervisor.adopt(Adopt(path, obj.version, obj.generation, obj.kind, obj.digest))
            case s.TrainRound(plan):
                self._guarded(lambda: self._train(plan))
            case s.SendUpdate(server_round):
                assert self.session.plan is not None
                self._transfers.send(server_round, self.session.plan.chunk_bytes, time.monotonic())
            case s.Decline(server_round, reason):
                self._say(
                    Line(
                        f"declined round {server_round}: {reason}",
                        event="declined",
                        level="warning",
                        round=server_round,
                    )
                )
                self._messages.up("declined", Declined(reason), server_round)
            case s.LetGo():
                self._transfers.pause()
                self._supervisor.release()
            case s.TellStatus():
                self._tell()

    def _fetch(self, obj: PublishedObject) -> None:
        self._storage.require(obj.manifest.size_bytes, f"version {obj.version}")
        self._transfers.fetch(obj, time.monotonic())

    def _train(self, plan: Plan) -> None:
        self._storage.require(round_bytes(plan), f"round {plan.round}")
        self._transfers.forget_before(plan.round)
        self._supervisor.train(plan, self._outbox.path(plan.round))

    def _obey_policy(self) -> None:
        """Rest while the owner's policy objects to work, and go on when it does no more."""
        sensed = self._sensing.latest()
        reason = self._watch.take(
            Conditions(self._local_time(), sensed.readings, sensed.others_percent), time.monotonic()
        )
        resting = self.session.rests.get("policy")
        if reason is not None and reason != resting:
            self._say(Line(f"resting: {reason}", event="resting"))
            self._feed(s.MustRest("policy", reason))
        # Only when all that the worker of before had said is taken: it must not be mistaken for the next one's words.
        elif reason is None and resting is not None and self._queue.empty():
            self._say(Line("working again: the policy has nothing against it any more", event="working"))
            self._feed(s.MayWork("policy"))

    def _look_for_room(self) -> None:
        """Go on as soon as what was declined would fit."""
        plan = self.session.plan
        try:
            self._storage.require(0 if plan is None else round_bytes(plan), "a round")
        except StorageError:
            return
        self._say(Line("there is room on the disk again", event="disk_free"))
        self._feed(s.MayWork("storage"))

    def _stored(self, act: Callable[[], None]) -> None:
        """Do something that writes; a full disk is a state of the session. What was written before stays."""
        try:
            act()
        except OSError as error:
            if not is_full(error):
                raise
            self._transfers.pause()
            self._storage_full(
                StorageError(f"the disk is full: {error.strerror}", place=str(self._folder), remedy="free space there")
            )

    def _storage_full(self, error: StorageError) -> None:
        self._say(Line(error.one_line(), event="disk_full", level="warning"))
        self._feed(s.MustRest("storage", error.one_line()))

    def _guarded(self, act: Callable[[], None]) -> None:
        """Do something for the session; what does not fit the budget or the disk fails like a command of the worker."""
        try:
            act()
        except FedkrsoError as error:
            self._queue.put(failure_of(error))

    def _failed(self, error: FedkrsoError) -> None:
        words = f"{error.place}: {error.message}" if error.place else error.message
        self._say(Line(words, event="worker_failed", level="warning"))
        loading = self.session.state == "loading"
        match error:
            case StorageError():
                self._feed(s.MustRest("storage", f"{error.message} ({error.remedy})"))
            case ConfigError() | DataError() | ModelError():
                self._give_up(error)
            case ArtefactDamaged():
                self._feed(s.WorkerFailed(error.message, died=False, artefact_damaged=True))
            case OutOfMemory():
                # Of a device that others use too: it may have more another time.
                self._feed(s.WorkerFailed(error.message, died=False))
            case ExactnessError() | BudgetError() if loading and not isinstance(error, BaseDamaged):
                self._give_up(error)
            case _:
                not_equal = isinstance(error, ExactnessError)
                self._feed(s.WorkerFailed(error.message, died=False, not_equal=not_equal))

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
        last = f": {event.tail.splitlines()[-1]}" if event.tail and event.returncode > 0 else ""
        self._say(Line(f"{why}{last}", event="worker_died", level="warning"))
        if self.session.worker_ready or self.session.state == "loading":
            self._feed(s.WorkerFailed(why, died=True))

    def _end_worker(self) -> None:
        self._supervisor.end()
        self.session.worker_ready = False

    def _fetched(self, sha256: str) -> None:
        self._feed(s.Fetched(sha256))

    def _gone(self, server_round: int, refused: str) -> None:
        self._outbox.sent(server_round)
        what = f"update of round {server_round}"
        if refused:
            self._say(Line(f"{what} refused: {refused}", event="refused", level="warning", round=server_round))
        else:
            self._say(Line(f"{what} committed", event="committed", round=server_round))
        self._feed(s.UpdateGone(server_round, refused))

    # To the wire

    def _tell(self) -> None:
        self._messages.tell(status(self.session, self._supervisor, self._name, self._messages.security))

    def _sample(self) -> None:
        reading = self._supervisor.sample(time.monotonic())
        numbers = telemetry(self.session, self._supervisor, reading, self._sensing.latest().readings, self._messages)
        self._messages.up("telemetry", numbers, self.session.plan.round if self.session.plan else 0)
