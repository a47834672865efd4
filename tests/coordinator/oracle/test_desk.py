# SPDX-License-Identifier: Apache-2.0
"""What the oracle takes, refuses and drops; and thresholds that are exact means."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.oracle.desk import Desk, Limits, Outgoing, Shape
from coordinator.oracle.thresholds import Kept, mean_thresholds
from fedcore.errors import ConfigError
from fedcore.wire.answers import AnswerBody, Answered, AnswerEnvelope, Ask, Learned, NotAnswered, Resolved, Thresholds

FRONT = "ab" * 32
SCALES = struct.pack("<2f", 0.5, 2.0)
ASK = Ask("0" * 32, FRONT, 2, bytes(8), SCALES)


def desk(**limits: int) -> Desk:
    return Desk(Shape(FRONT, 4, 16), 1, (0, 2**30), Limits(**limits))


def said(body: AnswerBody, sequence: int, node: str = "n", expires_at: float | None = 50.0) -> AnswerEnvelope:
    return AnswerEnvelope(answers=1, run="r", node=node, sequence=sequence, expires_at=expires_at, body=body)


def test_an_item_is_answered_to_who_asked_and_told_to_its_cluster() -> None:
    one = desk()
    assert one.heard(said(msgspec.structs.replace(ASK, cluster=1), 1), 10.0) == []
    (work,) = one.next_work(16, 10.0)
    assert work.hidden.tokens == 2 and one.next_work(16, 10.0) == []
    assert one.worked(work, (0.2, 0.8), b"\x01") == [
        Outgoing(Answered(ASK.item, (0.2, 0.8)), "n"),
        Outgoing(Resolved(FRONT, b"\x01", (0.2, 0.8)), cluster=1),
    ]
    assert one.failed(work, "broken") == [Outgoing(NotAnswered(ASK.item, "broken"), "n")]


def test_what_is_late_or_played_again_is_dropped() -> None:
    one = desk()
    assert one.heard(said(ASK, 5, expires_at=10.0), 10.0) == []
    assert one.heard(said(ASK, 6), 10.0) == one.heard(said(ASK, 6), 10.0) == one.heard(said(ASK, 4), 10.0) == []
    assert one.heard(said(ASK, 1, node="m"), 10.0) == [], "another device counts by itself"
    assert one.heard(said(Answered(ASK.item, (0.5, 0.5)), 7), 10.0) == []
    assert one.dropped == {"too late": 1, "played again": 2, "not for an oracle": 1}
    assert [work.node for work in one.next_work(16, 49.0)] == ["n", "m"]
    one.heard(said(ASK, 8), 10.0)
    assert one.next_work(16, 50.0) == [] and one.dropped["too late"] == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"front": "cd" * 32}, "the device's blocks are not those that this model follows"),
        ({"tokens": 3}, "hidden states of 4 numbers a token are expected"),
        ({"scales": bytes(4)}, "hidden states of 4 numbers a token are expected"),
        ({"cluster": 2}, "there are 2 clusters"),
        ({"tokens": 17}, "a text has at most 16 tokens"),
        *(
            ({"scales": struct.pack("<2f", 1.0, scale)}, "a token's scale is no positive number")
            for scale in (0.0, -1.0, float("nan"), float("inf"), 1e9)
        ),
    ],
)
def test_an_item_that_does_not_fit_is_refused_in_words(changes: dict[str, object], why: str) -> None:
    one = desk()
    (refused,) = one.heard(said(msgspec.structs.replace(ASK, **changes), 1), 10.0)
    assert refused == Outgoing(NotAnswered(ASK.item, why), "n") and one.next_work(16, 10.0) == []


def test_what_waits_is_bounded_by_device_and_in_all() -> None:
    one = desk(waiting=3, of_one=2)
    answers = [one.heard(said(ASK, number, node), 10.0) for number in range(3) for node in ("a", "b")]
    reasons = [message.body.reason for (message,) in filter(None, answers)]
    assert reasons == ["too many wait", "too many of this device wait", "too many wait"]
    assert len(one.next_work(2, 10.0)) == 2 and len(one.next_work(9, 10.0)) == 1
    assert one.heard(said(ASK, 9, "a"), 10.0) == []


def test_a_quorum_of_devices_makes_the_next_round_s_thresholds() -> None:
    one = desk(quorum=2)
    assert one.thresholds().body == Thresholds(1, FRONT, (0, 2**30))
    assert one.heard(said(Learned(2, 0, 8192, 1), 1), 0.0) == one.heard(said(Learned(1, 2, 8192, 1), 2), 0.0) == []
    assert one.heard(said(Learned(1, 0, 16384, 1), 3), 0.0) == []
    # The same device again: what it says last counts, and it is one device.
    assert one.heard(said(Learned(1, 0, 8192, 3), 4), 0.0) == []
    (published,) = one.heard(said(Learned(1, 0, 16384, 1), 1, "m"), 0.0)
    assert published.body == Thresholds(2, FRONT, (5 * 2**29, 2**30)) and not published.node
    assert one.heard(said(Learned(1, 0, 8192, 1), 5), 0.0) == [] and one.dropped.total() == 3


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2**14), st.integers(1, 2**20)), min_size=1, max_size=8),
)
def test_thresholds_are_the_exact_means_of_their_columns(numbers: list[tuple[int, int, int]]) -> None:
    found = {f"n{place}": Learned(1, *one) for place, one in enumerate(numbers)}
    units = mean_thresholds((7, 8, 9), found)
    for cluster, kept in enumerate((7, 8, 9)):
        theirs = [one for one in found.values() if one.cluster == cluster]
        total = sum(one.units * one.items for one in theirs)
        expected = Fraction(total << 18, sum(one.items for one in theirs)) if theirs else kept
        assert units[cluster] == round(expected), "half to even"


def test_what_is_kept_outlives_a_start(tmp_path: Path) -> None:
    path = tmp_path / "oracle" / "oracle.json"
    first = Kept.begin(path, 2)
    assert first == Kept(1, 1, (0, 0))
    msgspec.structs.replace(first, round=4, units=(5, 6)).write(path)
    assert Kept.begin(path, 2) == Kept(2, 4, (5, 6))
    with pytest.raises(ConfigError, match="it has 2 clusters, not 3"):
        Kept.begin(path, 3)
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        Kept.begin(path, 2)
