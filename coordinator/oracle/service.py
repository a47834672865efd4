# SPDX-License-Identifier: Apache-2.0
"""The shell around `Desk`: the broker, a worker with the large model, and what is kept on the disk."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec

from coordinator.job import Job
from coordinator.oracle.desk import Desk, Limits, Outgoing, Shape, Work
from coordinator.oracle.thresholds import Kept
from fedcore.config.broker import mqtt_settings
from fedcore.errors import ConfigError, WireError, WorkerError
from fedcore.transport.base import CONNECT_SECONDS, Connected, Message, Received, Transport, TransportEvent
from fedcore.transport.client import client_id
from fedcore.transport.mqtt import MqttTransport
from fedcore.wire.answers import ANSWERS_VERSION, AnswerEnvelope, AnswerTopics, opened, sealed
from fedcore.wire.identity import Enrolment, PublicKey, load_signing_key
from fedcore.worker.failures import error_of
from fedcore.worker.messages import Event, Failed
from fedcore.worker.parts import Finish, Finished, LoadPart, PartLoaded
from fedcore.worker.process import WorkerDied, WorkerProcess

__all__ = ["Oracle"]

_START_BITS = 32
_TURN_SECONDS = 0.2
_AT_ONCE = 16
_MOST_QUEUED = 2000
_LIMITS = Limits()


class Oracle:
    """Answers what devices ask; use it as a context manager.

    Args:
        job: Run, broker and keys.
        folder: What is kept between starts.
        limits: What may wait.
        tell: Gets a line for each thing that happens.
        transport: To the broker; None: as the job says.

    Raises:
        ConfigError: The broker's settings or keys cannot be used.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        limits: Limits = _LIMITS,
        tell: Callable[[str], None] = lambda line: None,
        transport: Transport | None = None,
    ) -> None:
        self._job, self._folder, self._limits, self._tell = job, folder, limits, tell
        trust = job.trust
        self._key = None if trust.signing_key is None else load_signing_key(Path(trust.signing_key))
        self._enrolled = None if trust.enrolled is None else Path(trust.enrolled)
        self._enrolment = None if self._enrolled is None else Enrolment.load(self._enrolled)
        # Not the leader's name: a broker knows one client by each.
        settings = mqtt_settings(job.broker, client_id(job.run, "coordinator.oracle"))
        self._transport = transport or MqttTransport(settings, random.Random(secrets.randbits(64)))  # noqa: S311
        self._topics = AnswerTopics(job.run)
        self._events: queue.Queue[TransportEvent | Event | WorkerDied] = queue.Queue()
        self._working: list[Work] = []
        self._stopped = False

    def load(self, model: Path, blocks: int, clusters: int, threads: int = 0) -> PartLoaded:
        """Have the large model in a worker.

        Args:
            model: Its folder.
            blocks: How many of its blocks devices have.
            clusters: Of devices.
            threads: Of the model; 0: as many as there are cores. Where other programs keep cores busy, fewer are
                quicker: threads wait for each other.

        Raises:
            FedkrsoError: It cannot be held.
        """
        self._path = self._folder / "oracle.json"
        self._kept = Kept.begin(self._path, clusters)
        self._sequence = self._kept.starts << _START_BITS
        self._worker = WorkerProcess(self._events.put, self._folder / "oracle.log")
        self._worker.send(LoadPart(model_folder=str(model), blocks=blocks, threads=threads or os.cpu_count() or 1))
        loaded = self._events.get()
        if isinstance(loaded, Failed):
            raise error_of(loaded)
        if not isinstance(loaded, PartLoaded):
            raise WorkerError("the worker ended", place=str(self._folder / "oracle.log"))
        shape = Shape(loaded.front, loaded.width, loaded.max_length)
        self.desk = Desk(shape, self._kept.round, self._kept.units, self._limits)
        return loaded

    def __enter__(self) -> Oracle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.stop()
        if hasattr(self, "_worker"):
            self._worker.stop()

    def stop(self) -> None:
        """Have `run` return; from any thread."""
        self._stopped = True

    def run(self) -> None:
        """Answer until `stop` is called.

        Raises:
            FedkrsoError: The broker refuses us, or the worker died.
        """
        self._transport.subscribe(self._topics.of("+", "up"))
        self._transport.start(self._sink)
        self._transport.wait_connected(CONNECT_SECONDS)
        while not self._stopped:
            try:
                event = self._events.get(timeout=_TURN_SECONDS)
            except queue.Empty:
                continue
            self._turn(event)

    def _sink(self, event: TransportEvent) -> None:
        # What is dropped here, a device answers by itself when its deadline has passed.
        if not isinstance(event, Received) or self._events.qsize() < _MOST_QUEUED:
            self._events.put(event)

    def _turn(self, event: TransportEvent | Event | WorkerDied) -> None:
        match event:
            case Connected():
                self._say([self.desk.thresholds()])
            case Received():
                self._heard(event)
            case Finished(scores, embeddings):
                for work, said, embedding in zip(self._working, scores, embeddings, strict=True):
                    self._say(self.desk.worked(work, said, embedding))
                self._working = []
            case Failed():
                for work in self._working:
                    self._say(self.desk.failed(work, error_of(event).message))
                self._working = []
            case WorkerDied():
                raise WorkerError(f"the worker ended with {event.returncode}", place=str(self._folder / "oracle.log"))
        if not self._working:
            self._working = self.desk.next_work(_AT_ONCE, time.time())
            if self._working:
                self._worker.send(Finish(tuple(work.hidden for work in self._working)))

    def _heard(self, event: Received) -> None:
        node = self._topics.node_of(event.topic) or ""
        try:
            envelope = opened(event.payload, self._key_of(node), self._job.run, node)
        except WireError as error:
            self.desk.dropped[error.message] += 1
            self._tell(f"refused a message of {node}: {error.message}")
            return
        before = self.desk.round
        messages = self.desk.heard(envelope, time.time())
        if self.desk.round != before:
            # On the disk before anybody hears of it: a round is never opened twice.
            self._kept = msgspec.structs.replace(self._kept, round=self.desk.round, units=self.desk.units)
            self._kept.write(self._path)
            said = ", ".join(f"{value / 2**32:.3f}" for value in self.desk.units)
            self._tell(f"round {self.desk.round} of thresholds: {said}")
        self._say(messages)

    def _key_of(self, node: str) -> PublicKey | None:
        if self._enrolled is None or self._enrolment is None:
            return None
        # Read anew, as small as it is: who is revoked is heard no more from the next message on. While somebody writes
        # it, the last one counts.
        with contextlib.suppress(ConfigError):
            self._enrolment = Enrolment.load(self._enrolled)
        return self._enrolment.key_of(node)

    def _say(self, messages: list[Outgoing]) -> None:
        for one in messages:
            self._sequence += 1
            envelope = AnswerEnvelope(
                answers=ANSWERS_VERSION, run=self._job.run, node=one.node, sequence=self._sequence, body=one.body
            )
            if one.node:
                topic = self._topics.of(one.node, "down")
            else:
                topic = self._topics.thresholds if one.cluster is None else self._topics.resolved(one.cluster)
            retain = not one.node and one.cluster is None
            # What does not go out, a device answers by itself; thresholds come again with the next link.
            self._transport.publish(Message(topic, sealed(envelope, self._key), retain=retain))
