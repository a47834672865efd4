# SPDX-License-Identifier: Apache-2.0
"""What a device does with a text: events in, actions out, no I/O and no clock.

The small model has said something of it. Its answer counts, or a peer's that is known, or the large model is asked and
waited for until a deadline; whatever becomes of that, the text is answered once. What was asked tells how often the
large model says something else, and from that the device learns its threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edge_client.owner.asking import AskSection
from fedcore.answers.resolved import Known, KnownAnswers
from fedcore.answers.routing import route, uncertainty
from fedcore.answers.threshold import Checked, learned, units_of
from fedcore.wire.answers import AnswerBody, Answered, Ask, Learned, NotAnswered, Resolved, Thresholds
from fedcore.worker.parts import Beginning

__all__ = ["Action", "AskSession", "By", "Give", "Said", "Send"]

By = Literal["device", "peer", "coordinator"]
_UNITS = 2**32


@dataclass(frozen=True)
class Said:
    """An answer.

    Attributes:
        scores: The probability of each label.
        by: Whose it is.
        why: Why it is the device's although it is unsure; empty where nothing went wrong.
        u: The small model's uncertainty.
        asked: The item that was asked; empty for none.
    """

    scores: tuple[float, ...]
    by: By
    u: float
    why: str = ""
    asked: str = ""


@dataclass(frozen=True)
class Send:
    """Say something to the coordinator.

    Attributes:
        body: What.
        wait_seconds: How long an answer is waited for; None where there is none.
    """

    body: AnswerBody
    wait_seconds: float | None = None


@dataclass(frozen=True)
class Give:
    """Answer a text, by the key that it was given."""

    key: int
    said: Said


Action = Send | Give


@dataclass(frozen=True)
class _Waiting:
    key: int
    scores: tuple[float, ...]
    u: float
    until: float


class AskSession:
    """One device.

    Args:
        section: How it answers.
        front: Of its own part of the model.
        labels: How many the small model knows.
        new_item: Draws the name of an item; no two are alike.
    """

    def __init__(self, section: AskSection, front: str, labels: int, new_item: Callable[[], str]) -> None:
        self._section, self._front, self._labels, self._new_item = section, front, labels, new_item
        self._known = KnownAnswers(section.known_answers)
        self._waiting: dict[str, _Waiting] = {}
        self._round, self._said_round = 0, 0
        self._published = 0.0
        self._other_model = ""
        self._seen: list[float] = []
        self._checked: list[Checked] = []
        self.refused: dict[str, int] = {}
        """Messages that changed nothing, by why."""

    @property
    def threshold(self) -> float:
        """The one that counts now."""
        return self._published if self._section.threshold is None else self._section.threshold

    @property
    def round(self) -> int:
        """The round of thresholds that is open; 0 before the first."""
        return self._round

    def begun(self, key: int, text: Beginning, now: float) -> list[Action]:
        """The small model has said something of a text.

        Args:
            key: The text's.
            text: What it said, and what the first blocks made of it.
            now: Seconds of a clock that never goes back.
        """
        u = uncertainty(text.scores)
        self._seen.append(u)
        sure = route(u, self.threshold, None, 0) == "answer"
        like = None if sure else self._known.newest_like(text.embedding, self._section.least_similarity)
        similarity = None if like is None else like[1]
        match route(u, self.threshold, similarity, self._section.least_similarity):
            case "answer":
                return [Give(key, Said(text.scores, "device", u)), *self._learned()]
            case "reuse":
                assert like is not None
                return [Give(key, Said(like[0].scores, "peer", u)), *self._learned()]
        if self._other_model:
            return [Give(key, Said(text.scores, "device", u, self._other_model))]
        item, hidden, wait = self._new_item(), text.hidden, self._section.deadline_seconds
        self._waiting[item] = _Waiting(key, text.scores, u, now + wait)
        ask = Ask(item, self._front, hidden.tokens, hidden.numbers, hidden.scales, self._section.cluster)
        return [Send(ask, wait)]

    def heard(self, body: AnswerBody, now: float) -> list[Action]:
        """The coordinator says something; what fits nothing here is counted and changes nothing."""
        match body:
            case Answered(item, scores):
                return self._answered(item, scores, now)
            case NotAnswered(item, reason):
                return self._without(item, f"the coordinator says: {reason}")
            case Resolved(front, embedding, scores) if front == self._front and len(scores) == self._labels:
                self._known.add(Known(embedding, scores))
            case Thresholds():
                return self._opened(body)
            case _:
                self._refuse("a message for another model, or for nobody")
        return []

    def unsent(self, item: str, why: str) -> list[Action]:
        """What was to be asked could not go out."""
        return self._without(item, why)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        late = [item for item, one in self._waiting.items() if one.until <= now]
        return [action for item in late for action in self._without(item, "the coordinator did not answer in time")]

    def next_deadline(self) -> float | None:
        """When `tick` has something to do; None while nothing is waited for."""
        return min((one.until for one in self._waiting.values()), default=None)

    def _answered(self, item: str, scores: tuple[float, ...], now: float) -> list[Action]:
        one = self._waiting.get(item)
        if one is None or one.until <= now:
            self._refuse("an answer that nobody waits for")
            return self.tick(now)
        if len(scores) != self._labels:
            self._refuse("an answer of a model with other labels")
            return self._without(item, "the coordinator's model has other labels")
        del self._waiting[item]
        self._checked.append(Checked(one.u, _label(scores) != _label(one.scores)))
        return [Give(one.key, Said(scores, "coordinator", one.u, asked=item)), *self._learned()]

    def _without(self, item: str, why: str) -> list[Action]:
        one = self._waiting.pop(item, None)
        if one is None:
            self._refuse("an answer that nobody waits for")
            return []
        return [Give(one.key, Said(one.scores, "device", one.u, why, item))]

    def _opened(self, body: Thresholds) -> list[Action]:
        if body.round <= self._round:
            self._refuse("thresholds of an earlier round, played again")
            return []
        self._round = body.round
        if body.front != self._front:
            self._other_model = "the coordinator's large model is of another small one"
            self._refuse("thresholds for another model")
            return []
        self._other_model = ""
        if self._section.cluster < len(body.units):
            self._published = body.units[self._section.cluster] / _UNITS
        return self._learned()

    def _learned(self) -> list[Action]:
        """What this device would choose, once in each round, when it has seen enough."""
        section = self._section
        enough = section.learn_every and len(self._seen) >= section.learn_every and self._checked
        if not enough or self._said_round >= self._round:
            return []
        own = learned(self.threshold, self._seen, self._checked, section.cost, section.softness)
        said = Learned(self._round, section.cluster, units_of(own), len(self._seen))
        self._said_round, self._seen = self._round, []
        # What was asked stays: with a higher threshold less is asked, and the line needs both ends.
        self._checked = self._checked[-section.learn_every :]
        return [Send(said)]

    def _refuse(self, why: str) -> None:
        self.refused[why] = self.refused.get(why, 0) + 1


def _label(scores: tuple[float, ...]) -> int:
    return scores.index(max(scores))
