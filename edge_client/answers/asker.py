# SPDX-License-Identifier: Apache-2.0
"""The shell around `AskSession`: a worker with the small model, and the broker."""

from __future__ import annotations

import os
import queue
import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edge_client.answers.session import Action, AskSession, Give, Said, Send
from edge_client.node import Node
from fedcore.config.broker import mqtt_settings
from fedcore.config.models import resolve_model_folder
from fedcore.errors import ConfigError, TransportError, WireError, WorkerError
from fedcore.system.durable import DurableNumber
from fedcore.transport.base import Message, Received, Transport, TransportEvent
from fedcore.transport.client import client_id
from fedcore.transport.mqtt import MqttTransport
from fedcore.wire.answers import ANSWERS_VERSION, AnswerEnvelope, AnswerTopics, Ask, opened, sealed
from fedcore.wire.identity import load_public_key, load_signing_key
from fedcore.wire.post import LARGEST_START
from fedcore.worker.failures import error_of
from fedcore.worker.messages import Event, Failed
from fedcore.worker.parts import Begin, Begun, LoadPart, PartLoaded
from fedcore.worker.process import WorkerDied, WorkerProcess

__all__ = ["Asker", "Given"]

_START_BITS = 32
_TURN_SECONDS = 0.2
_AT_ONCE = 16


@dataclass(frozen=True)
class Given:
    """An answer, and what it took.

    Attributes:
        label: The likeliest.
        said: All of it.
        seconds: From the question to the answer.
        sent_bytes: Of the message to the coordinator, signature and all; 0 where nothing was asked.
        received_bytes: Of the coordinator's answer.
    """

    label: str
    said: Said
    seconds: float
    sent_bytes: int = 0
    received_bytes: int = 0


class Asker:
    """Answers texts; use it as a context manager.

    Args:
        node: With `[ask]`.
        transport: To the broker; None: as the node file says.

    Raises:
        ConfigError: The node file names no small model, or the broker's settings cannot be used.
        ModelError: No such folder.

    Attributes:
        labels: The small model's; there once it is entered.
        session: What decides; likewise.
    """

    def __init__(self, node: Node, transport: Transport | None = None) -> None:
        self._node, self._section = node, node.ask
        if not node.ask.model:
            raise ConfigError("no small model is named", place="ask.model", remedy="set it to its folder")
        self._model = resolve_model_folder(node.ask.model, place="ask.model")
        trust = node.trust
        self._key = None if trust.signing_key is None else load_signing_key(Path(trust.signing_key))
        self._theirs = None if trust.coordinator_key is None else load_public_key(trust.coordinator_key)
        # Not the agent's name: a broker knows one client by each.
        settings = mqtt_settings(node.broker, client_id(node.run, f"{node.node}.ask"))
        self._transport = transport or MqttTransport(settings, random.Random(secrets.randbits(64)))  # noqa: S311
        self._topics = AnswerTopics(node.run)
        self._events: queue.Queue[TransportEvent | Event | WorkerDied] = queue.Queue()
        self._heard_sequence: dict[str, int] = {}
        self._sizes: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Asker:
        folder = Path(self._node.folder)
        folder.mkdir(parents=True, exist_ok=True)
        starts = DurableNumber(folder / "asked-starts")
        starts.set(starts.value % LARGEST_START + 1)
        self._sequence = starts.value << _START_BITS
        self._worker = WorkerProcess(self._events.put, folder / "ask.log")
        try:
            threads = self._node.threads or os.cpu_count() or 1
            loaded = self._worker_says(LoadPart(model_folder=str(self._model), threads=threads))
            assert isinstance(loaded, PartLoaded)
            self.labels = loaded.labels
            self.session = AskSession(self._section, loaded.front, len(loaded.labels), lambda: secrets.token_hex(16))
            for topic in (
                self._topics.of(self._node.node, "down"),
                self._topics.thresholds,
                self._topics.resolved(self._section.cluster),
            ):
                self._transport.subscribe(topic)
            self._transport.start(self._events.put)
        except BaseException:
            self._worker.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.stop()
        self._worker.stop()

    def wait(self, seconds: float, *, rounds: int = 0) -> None:
        """Listen to the coordinator for a while, and no longer than until a round of thresholds is open.

        Args:
            seconds: At most.
            rounds: Which; 0: for the whole time.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until and not (rounds and self.session.round >= rounds):
            self._turn({}, until)

    def ask(self, texts: Sequence[tuple[str, str | None]]) -> list[Given]:
        """Answer texts, in their order.

        Args:
            texts: Each with its second sentence, where the model reads pairs, else None.

        Raises:
            FedkrsoError: The small model cannot answer. That the coordinator cannot is none: the answer says so.
        """
        given: dict[int, Given] = {}
        for start in range(0, len(texts), _AT_ONCE):
            part = tuple(texts[start : start + _AT_ONCE])
            began = time.monotonic()
            begun = self._worker_says(Begin(part))
            assert isinstance(begun, Begun)
            each = (time.monotonic() - began) / len(part)
            for key, text in enumerate(begun.texts, start):
                asked_at = time.monotonic()
                mine: dict[int, Given] = {}
                self._do(self.session.begun(key, text, asked_at), mine, asked_at - each)
                while key not in mine:
                    self._turn(mine, self.session.next_deadline(), asked_at - each)
                given |= mine
        return [given[key] for key in range(len(texts))]

    def _worker_says(self, command: LoadPart | Begin) -> PartLoaded | Begun:
        self._worker.send(command)
        while True:
            event = self._events.get()
            if isinstance(event, Failed):
                raise error_of(event)
            if isinstance(event, WorkerDied):
                last = event.tail.splitlines()[-1] if event.tail else "no output"
                raise WorkerError(f"the worker ended with {event.returncode}: {last}", place=str(self._node.folder))
            if isinstance(event, PartLoaded | Begun):
                return event
            if isinstance(event, Received):
                self._do(self._heard(event), {}, time.monotonic())

    def _turn(self, given: dict[int, Given], until: float | None, began: float = 0.0) -> None:
        left = _TURN_SECONDS if until is None else max(0.0, min(_TURN_SECONDS, until - time.monotonic()))
        try:
            event = self._events.get(timeout=left)
        except queue.Empty:
            event = None
        if isinstance(event, Received):
            self._do(self._heard(event), given, began)
        elif isinstance(event, WorkerDied):
            raise WorkerError(f"the worker ended with {event.returncode}", place=str(self._node.folder))
        self._do(self.session.tick(time.monotonic()), given, began)

    def _heard(self, event: Received) -> list[Action]:
        """What the coordinator says, if it is the coordinator, and newer than what it said there last."""
        addressee = self._topics.node_of(event.topic) or ""
        try:
            envelope = opened(event.payload, self._theirs, self._node.run, addressee)
        except WireError as error:
            self.session.refused[error.message] = self.session.refused.get(error.message, 0) + 1
            return []
        if envelope.sequence <= self._heard_sequence.get(event.topic, -1):
            self.session.refused["played again"] = self.session.refused.get("played again", 0) + 1
            return []
        self._heard_sequence[event.topic] = envelope.sequence
        item = getattr(envelope.body, "item", "")
        if item in self._sizes:
            self._sizes[item] = self._sizes[item][0], len(event.payload)
        return self.session.heard(envelope.body, time.monotonic())

    def _do(self, actions: list[Action], given: dict[int, Given], began: float) -> None:
        for action in actions:
            match action:
                case Give(key, said):
                    sent, received = self._sizes.pop(said.asked, (0, 0))
                    label = self.labels[said.scores.index(max(said.scores))]
                    given[key] = Given(label, said, time.monotonic() - began, sent, received)
                case Send():
                    self._do(self._send(action), given, began)

    def _send(self, action: Send) -> list[Action]:
        self._sequence += 1
        # Here a steady clock says what is late; there this moment says what is not worth the work any more.
        expires_at = None if action.wait_seconds is None else time.time() + action.wait_seconds
        envelope = AnswerEnvelope(
            answers=ANSWERS_VERSION,
            run=self._node.run,
            node=self._node.node,
            sequence=self._sequence,
            expires_at=expires_at,
            body=action.body,
        )
        payload = sealed(envelope, self._key)
        item = action.body.item if isinstance(action.body, Ask) else ""
        try:
            sent = self._transport.publish(Message(self._topics.of(self._node.node, "up"), payload))
            why = "there is no link to the broker"
        except TransportError as error:
            sent, why = False, error.message
        if not item:
            return []
        if not sent:
            return self.session.unsent(item, why)
        self._sizes[item] = len(payload), 0
        return []
