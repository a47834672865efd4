# SPDX-License-Identifier: Apache-2.0
"""Messages of answers: bytes and back, and what is refused before and after a signature is right."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcore.errors import ForgedMessage, MalformedMessage, WireError
from fedcore.wire.answers import (
    AnswerBody,
    Answered,
    AnswerEnvelope,
    Ask,
    Learned,
    NotAnswered,
    Resolved,
    Thresholds,
    opened,
    sealed,
)
from fedcore.wire.codec import decode, encode
from fedcore.wire.identity import SigningKey
from fedcore.wire.messages import Commit, Envelope

KEY, OTHER = SigningKey(bytes(32)), SigningKey(bytes([1] * 32))
ITEM, FRONT = "ab" * 16, "cd" * 32
BODIES: list[AnswerBody] = [
    Ask(ITEM, FRONT, 2, bytes(8), bytes(8), 3),
    Answered(ITEM, (0.25, 0.75)),
    NotAnswered(ITEM, "busy\x1b[2J"),
    Resolved(FRONT, b"\x01\xff", (0.5, 0.5)),
    Learned(1, 0, 8192, 40),
    Thresholds(2, FRONT, (0, 2**31, 2**32)),
]
# Changes only with ANSWERS_VERSION.
GOLDEN = "13cddaf65223"


def envelope(body: AnswerBody, **changes: object) -> AnswerEnvelope:
    made = AnswerEnvelope(answers=1, run="r", node="n", sequence=7, expires_at=9.5, body=body)
    return msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_a_message_comes_back_as_it_was_from_its_sender_alone(body: AnswerBody) -> None:
    payload = sealed(envelope(body), KEY)
    assert opened(payload, KEY.public, "r", "n") == envelope(body)
    for changed in (
        sealed(envelope(body), OTHER),
        sealed(envelope(body), None),
        payload[:-1] + bytes([payload[-1] ^ 1]),
    ):
        with pytest.raises(ForgedMessage):
            opened(changed, KEY.public, "r", "n")
    for run, node in (("s", "n"), ("r", "m"), ("r", "")):
        with pytest.raises(ForgedMessage, match="on this topic"):
            opened(payload, KEY.public, run, node)


def test_a_message_of_rounds_is_none_of_answers_and_the_other_way_round() -> None:
    payload = encode(Envelope(run="r", round=1, node="n", body=Commit("t")), KEY)
    with pytest.raises(MalformedMessage, match="answers of version None"):
        opened(payload, KEY.public, "r", "n")
    with pytest.raises(WireError):
        decode(sealed(envelope(BODIES[0]), KEY), KEY.public)
    with pytest.raises(MalformedMessage, match="answers of version 2, this program speaks 1"):
        opened(sealed(envelope(BODIES[0], answers=2), KEY), KEY.public, "r", "n")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_words(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        opened(payload, None, "r", "n")


def test_the_bytes_are_those_of_the_version() -> None:
    written = b"".join(sealed(envelope(body), None) for body in BODIES)
    assert hashlib.sha256(written).hexdigest()[:12] == GOLDEN
