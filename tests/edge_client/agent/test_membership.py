# SPDX-License-Identifier: Apache-2.0
"""Runs of one name: a node goes where it has not been, or where the coordinator answers its own word."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from plans import make_plan

from edge_client.agent.membership import Membership
from edge_client.agent.outbox import Outbox
from fedcore.errors import ForgedMessage
from fedcore.fields.formats import SPOKEN
from fedcore.wire.codec import decode
from fedcore.wire.messages import Body, Commit, Envelope, Welcome
from fedcore.wire.post import Post

A, B, C = "a" * 32, "b" * 32, "c" * 32
WELCOME = Welcome(formats=dict(SPOKEN))


def membership(folder: Path, *, signed: bool = True) -> Membership:
    words = count()
    return Membership(folder / "r.json", signed=signed, word=lambda: f"word-{next(words)}")


def said(run_id: str, body: Body, start: int = 1, word: str = "") -> Envelope:
    return decode(Post("r", "", None, start, run_id).seal(body, 1, correlation=word))


def test_a_later_run_of_the_name_is_entered_and_the_earlier_one_never_again(tmp_path: Path) -> None:
    own = membership(tmp_path)
    assert own.hear(said(A, make_plan(1)), "plan") and own.run_id == A
    # Its coordinator's clock was far ahead, or it was aborted: neither says anything of the next run.
    assert not own.hear(said(A, make_plan(3), start=900_000_000), "plan")
    assert own.hear(said(B, make_plan(1)), "plan") and own.run_id == B
    for again in (own, membership(tmp_path)):
        with pytest.raises(ForgedMessage, match="a plan of an earlier run of this name, played again"):
            again.hear(said(A, make_plan(4), start=900_000_001), "plan")
        with pytest.raises(ForgedMessage, match="a message of another run of this name"):
            again.hear(said(A, Commit("1-x")), "down")
        assert again.run_id == B


def test_who_was_lured_into_an_old_run_comes_back_by_an_answer_to_its_own_word(tmp_path: Path) -> None:
    own = membership(tmp_path)
    own.hear(said(B, make_plan(5)), "plan")
    # Recorded before this node was there: it cannot know.
    assert own.hear(said(A, make_plan(2)), "plan") and own.run_id == A
    word = own.word
    with pytest.raises(ForgedMessage, match="an old welcome"):
        own.hear(said(B, WELCOME, word="word-0"), "down")
    assert own.hear(said(B, WELCOME, word=word), "down") and own.run_id == B
    # A word counts once.
    with pytest.raises(ForgedMessage, match="an old welcome"):
        own.hear(said(A, WELCOME, word=word), "down")
    # Two answers to two messages of a start are nothing to speak of.
    assert not own.hear(said(B, WELCOME, word="word-0"), "down")
    assert not own.hear(said(B, make_plan(6)), "plan")


def test_a_jump_of_the_number_stops_nobody_in_an_unsigned_run(tmp_path: Path) -> None:
    own = membership(tmp_path, signed=False)
    for start in (2**31 - 1, 2**30, 20_000):
        with pytest.raises(ForgedMessage, match="a plan whose number jumps"):
            own.hear(said(A, make_plan(1), start=start), "plan")
    assert own.hear(said(A, make_plan(1)), "plan")
    with pytest.raises(ForgedMessage, match="a plan whose number jumps"):
        own.hear(said(A, make_plan(2), start=20_000), "plan")
    assert not own.hear(said(A, make_plan(2), start=2), "plan")
    # Signed, a coordinator may have started so often; a number that no count of starts reaches is nobody's.
    with pytest.raises(ForgedMessage, match="a plan whose number jumps"):
        membership(tmp_path).hear(said(B, make_plan(1), start=2**31 + 1), "plan")


def test_a_damaged_file_is_as_none(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b'{"run_id": 7')
    assert membership(tmp_path).run_id == ""


def test_another_run_finds_an_empty_outbox(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.begin(A)
    for server_round in (1, 4):
        outbox.path(server_round).write_bytes(b"update")
        outbox.seal(server_round)
    outbox.sent(3)
    outbox.begin(A)
    assert (outbox.waiting_round, outbox.sent_round) == (4, 3)
    again = Outbox(tmp_path)
    again.begin(B)
    assert (again.waiting_round, again.sent_round) == (0, 0) and not list(tmp_path.glob("*.bin"))
    assert (Outbox(tmp_path).waiting_round, Outbox(tmp_path).sent_round) == (0, 0)
