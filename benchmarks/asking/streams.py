# SPDX-License-Identifier: Apache-2.0
"""Texts of a few devices, one after the other, through the devices' and the oracle's own decisions: what is decided
where, without a wire."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.oracle.desk import Desk, Limits, Outgoing, Shape
from edge_client.answers.session import Action, AskSession, Give, Said, Send
from edge_client.owner.asking import AskSection
from fedcore.wire.answers import Answered, AnswerEnvelope, Ask, Learned, Resolved, Thresholds, sealed
from fedcore.worker.parts import Beginning, HiddenStates

__all__ = ["NODES", "Heard", "Stream", "Text"]

NODES = 4


@dataclass(frozen=True)
class Text:
    """A text as both models have answered it beforehand.

    Attributes:
        label: The right one.
        small: What the first blocks made of it.
        large: What the large model says of that.
    """

    label: int
    small: Beginning
    large: tuple[float, ...]


@dataclass(frozen=True)
class Heard:
    """What became of a stream's texts.

    Attributes:
        said: The answers, in the order of the texts.
        sent_bytes: Of everything that devices said, signatures and all.
        thresholds: As they were published, of the one cluster.
    """

    said: list[Said]
    sent_bytes: int
    thresholds: list[float]

    def accuracy(self, texts: Sequence[Text]) -> float:
        """How many answers are right."""
        right = (one.scores.index(max(one.scores)) == text.label for one, text in zip(self.said, texts, strict=True))
        return sum(right) / len(texts)

    def share(self, by: str) -> float:
        """How many are whose."""
        return sum(one.by == by for one in self.said) / len(self.said)


class Stream:
    """Devices that take turns, text by text.

    Args:
        section: Of each.
        peers: Whether what the large model says to one is told to all.
    """

    def __init__(self, section: AskSection, *, peers: bool) -> None:
        items = (f"{number:032x}" for number in itertools.count())
        front = "ab" * 32
        self._devices = [AskSession(section, front, 2, lambda: next(items)) for _ in range(NODES)]
        self._desk = Desk(Shape(front, 0, 0), 1, (0,), Limits(quorum=NODES))
        self._peers, self._sequence, self._sent_bytes = peers, 0, 0
        self._thresholds: list[float] = []
        self._publish([self._desk.thresholds()])

    def run(self, texts: Sequence[Text]) -> Heard:
        """Every text through one of the devices."""
        given: dict[int, Said] = {}
        for key, text in enumerate(texts):
            node = key % NODES
            actions = self._devices[node].begun(key, text.small, 0.0)
            while actions:
                actions = [more for action in actions for more in self._done(action, node, text, given)]
        return Heard([given[key] for key in range(len(texts))], self._sent_bytes, self._thresholds)

    def _done(self, action: Action, node: int, text: Text, given: dict[int, Said]) -> list[Action]:
        match action:
            case Give(key, said):
                given[key] = said
                return []
            case Send(body):
                self._sequence += 1
                envelope = AnswerEnvelope(
                    answers=1, run="run", node=f"node-{node}", sequence=self._sequence, expires_at=1.0, body=body
                )
                self._sent_bytes += len(sealed(envelope, None))
                if isinstance(body, Learned):
                    self._publish(self._desk.heard(envelope, 0.0))
                elif isinstance(body, Ask):
                    return self._answered(node, body, text)
        return []

    def _answered(self, node: int, ask: Ask, text: Text) -> list[Action]:
        actions = self._devices[node].heard(Answered(ask.item, text.large), 0.0)
        if self._peers:
            for device in self._devices:
                device.heard(Resolved(ask.front, text.small.embedding, text.large), 0.0)
        return actions

    def _publish(self, messages: list[Outgoing]) -> None:
        for message in messages:
            assert isinstance(message.body, Thresholds)
            self._thresholds.append(message.body.units[0] / 2**32)
            for node, device in enumerate(self._devices):
                for action in device.heard(message.body, 0.0):
                    assert isinstance(action, Send)
                    self._done(action, node, _NO_TEXT, {})


_NO_TEXT = Text(0, Beginning((), HiddenStates(0, b"", b""), b""), ())
"""What is said of thresholds is of no text."""
