# SPDX-License-Identifier: Apache-2.0
"""A device's decisions: every text is answered once, whatever the coordinator does, and nothing forged or late
counts."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from edge_client.answers.session import AskSession, Give, Send
from edge_client.owner.asking import AskSection
from fedcore.answers.routing import uncertainty
from fedcore.errors import ConfigError
from fedcore.wire.answers import Answered, Ask, Learned, NotAnswered, Resolved, Thresholds
from fedcore.worker.parts import Beginning, HiddenStates

FRONT, SURE, UNSURE = "ab" * 32, (0.99, 0.01), (0.55, 0.45)
LARGE = (0.2, 0.8)


def session(**changes: object) -> AskSession:
    items = (f"{number:032x}" for number in itertools.count())
    section = msgspec.structs.replace(AskSection(threshold=0.5, deadline_seconds=2.0, learn_every=4), **changes)
    return AskSession(section, FRONT, 2, lambda: next(items))


def text(scores: tuple[float, ...], embedding: bytes = b"\x01\x02") -> Beginning:
    return Beginning(scores, HiddenStates(2, bytes(4), bytes(8)), embedding)


def test_what_is_sure_is_answered_and_what_is_not_is_asked_and_answered_once() -> None:
    device = session()
    (sure,) = device.begun(0, text(SURE), 10.0)
    assert isinstance(sure, Give) and (sure.key, sure.said.by, sure.said.scores) == (0, "device", SURE)
    (sent,) = device.begun(1, text(UNSURE), 10.0)
    assert isinstance(sent, Send) and isinstance(sent.body, Ask)
    assert (sent.wait_seconds, sent.body.front, sent.body.tokens, device.next_deadline()) == (2.0, FRONT, 2, 12.0)
    (given,) = device.heard(Answered(sent.body.item, LARGE), 11.0)
    assert isinstance(given, Give) and (given.key, given.said.by, given.said.scores) == (1, "coordinator", LARGE)
    assert given.said.u == uncertainty(UNSURE) and given.said.asked == sent.body.item
    # Again, and late: nobody waits.
    assert device.heard(Answered(sent.body.item, LARGE), 11.0) == [] and device.tick(99.0) == []
    assert device.refused == {"an answer that nobody waits for": 1} and device.next_deadline() is None


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("late", "the coordinator did not answer in time"),
        ("late answer", "the coordinator did not answer in time"),
        ("unsent", "no link"),
        ("refused", "the coordinator says: too many wait"),
        ("other labels", "the coordinator's model has other labels"),
    ],
)
def test_without_the_coordinator_the_small_model_s_answer_counts_and_is_marked(how: str, why: str) -> None:
    device = session()
    (sent,) = device.begun(7, text(UNSURE), 10.0)
    assert isinstance(sent, Send) and isinstance(sent.body, Ask)
    item = sent.body.item
    actions = {
        "late": lambda: device.tick(12.0),
        "late answer": lambda: device.heard(Answered(item, LARGE), 12.0),
        "unsent": lambda: device.unsent(item, "no link"),
        "refused": lambda: device.heard(NotAnswered(item, "too many wait"), 11.0),
        "other labels": lambda: device.heard(Answered(item, (0.2, 0.2, 0.6)), 11.0),
    }[how]()
    (given,) = actions
    assert isinstance(given, Give)
    assert (given.key, given.said.by, given.said.why, given.said.scores) == (7, "device", why, UNSURE)


def test_a_peer_s_answer_is_reused_where_the_text_is_alike_and_the_model_the_same() -> None:
    device = session(known_answers=2)
    for front, embedding in ((FRONT, b"\x02\x04"), ("cd" * 32, b"\x7f\x01")):
        assert device.heard(Resolved(front, embedding, LARGE), 0.0) == []
    (given,) = device.begun(0, text(UNSURE), 0.0)
    assert isinstance(given, Give) and (given.said.by, given.said.scores) == ("peer", LARGE)
    # Of another model, or another text: asked.
    for embedding in (b"\x7f\x01", b"\x02\xfc"):
        assert isinstance(device.begun(1, text(UNSURE, embedding), 0.0)[0], Send)
    # Where it is sure, a peer's answer does not count.
    assert device.begun(2, text(SURE), 0.0)[0].said.by == "device"
    for _ in range(2):
        device.heard(Resolved(FRONT, b"\x7f\x00", LARGE), 0.0)
    assert isinstance(device.begun(3, text(UNSURE), 0.0)[0], Send), "the oldest is forgotten"


def test_thresholds_are_published_by_round_and_never_played_again() -> None:
    device = session(threshold=None, cluster=1)
    assert device.threshold == 0 and isinstance(device.begun(0, text(SURE), 0.0)[0], Send)
    device.heard(Thresholds(2, FRONT, (0, 2**31)), 0.0)
    assert device.threshold == 0.5 and isinstance(device.begun(1, text(SURE), 0.0)[0], Give)
    device.heard(Thresholds(1, FRONT, (2**32, 2**32)), 0.0)
    device.heard(Thresholds(2, FRONT, (2**32, 2**32)), 0.0)
    assert (device.threshold, device.round) == (0.5, 2)
    # Of a coordinator with another model nothing is asked: it could not go on from what this device has made.
    device.heard(Thresholds(3, "cd" * 32, (0, 0)), 0.0)
    (given,) = device.begun(2, text(UNSURE), 0.0)
    assert isinstance(given, Give) and "another small one" in given.said.why
    device.heard(Thresholds(4, FRONT, (0, 2**30)), 0.0)
    assert device.threshold == 0.25 and isinstance(device.begun(3, text(UNSURE), 0.0)[0], Send)


def test_a_device_says_its_threshold_once_a_round_and_only_after_it_has_seen_enough() -> None:
    device = session(threshold=None, cost=0.3)
    device.heard(Thresholds(1, FRONT, (0,)), 0.0)
    said = []
    for number in range(12):
        # The large model says something else of what is unsure.
        scores, answer = (SURE, SURE) if number % 2 else (UNSURE, LARGE)
        (sent,) = device.begun(number, text(scores), 0.0)
        actions = device.heard(Answered(sent.body.item, answer), 1.0)
        said += [(number, one.body) for one in actions if isinstance(one, Send)]
    assert [number for number, _ in said] == [3]
    body = said[0][1]
    assert isinstance(body, Learned) and (body.round, body.cluster, body.items) == (1, 0, 4)
    assert uncertainty(SURE) < body.units / 2**14 < uncertainty(UNSURE)
    (again,) = device.heard(Thresholds(2, FRONT, (2**31,)), 0.0)
    assert isinstance(again.body, Learned) and (again.body.round, again.body.items) == (2, 8)
    assert device.heard(Thresholds(3, FRONT, (2**31,)), 0.0) == []


@pytest.mark.parametrize(("threshold", "by"), [(1.0, {"device"}), (0.0, {"coordinator"})])
def test_at_the_ends_one_model_answers_item_by_item(threshold: float, by: set[str]) -> None:
    device, found = session(threshold=threshold, least_similarity=2.0), set()
    for number, scores in enumerate([(1.0, 0.0), SURE, UNSURE, (0.5, 0.5), (0.0, 1.0)]):
        (action,) = device.begun(number, text(scores), 0.0)
        if isinstance(action, Send):
            (action,) = device.heard(Answered(action.body.item, LARGE), 0.0)
            assert action.said.scores == LARGE
        else:
            assert action.said.scores == scores
        found.add(action.said.by)
    assert found == by


def test_a_section_that_cannot_be_is_refused_by_key() -> None:
    for key, value in {"threshold": 1.5, "cluster": -1, "deadline_seconds": 0.0, "cost": 2.0}.items():
        with pytest.raises(ConfigError) as refused:
            AskSection(**{key: value})  # type: ignore[arg-type]
        assert refused.value.place == f"ask.{key}"
