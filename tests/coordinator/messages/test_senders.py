# SPDX-License-Identifier: Apache-2.0
"""Whose messages count at the coordinator: enrolment, revocation while a run goes on, old statuses played again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from coordinator.messages.senders import Senders
from coordinator.store.eventlog import EventLog
from coordinator.store.ledger import SqliteLedger
from coordinator.store.view import EventView
from fedcore.errors import ForgedMessage
from fedcore.system.clocks import Clocks
from fedcore.wire.identity import SigningKey
from fedcore.wire.messages import Body, Declined, Status
from fedcore.wire.post import Post

KEYS = {"a": SigningKey(b"a" * 32), "b": SigningKey(b"b" * 32)}
ONLINE, LOST = Status(online=True), Status(online=False, state="lost")


def enrolled(path: Path, *revoked: str) -> Path:
    nodes = {node: key.public.hex for node, key in KEYS.items()}
    path.write_text(json.dumps({"coordinator": "00" * 32, "nodes": nodes, "revoked": revoked}))
    return path


def post(node: str, *, run: str = "r", key: str = "", start: int = 1) -> Post:
    return Post(run, node, KEYS[key or node], start)


def test_only_the_named_sender_of_this_run_is_heard(tmp_path: Path) -> None:
    senders = Senders("r", enrolled(tmp_path / "e.json"))
    assert senders.signed and senders.open("a", post("a").seal(ONLINE)).node == "a"
    forged: dict[str, bytes] = {
        "another's key": post("a", key="b").seal(ONLINE),
        "another node's message on this topic": post("b").seal(ONLINE),
        "another run": post("a", run="q").seal(ONLINE),
        "no signature": Post("r", "a", None, 1).seal(ONLINE),
    }
    for payload in forged.values():
        with pytest.raises(ForgedMessage):
            senders.open("a", payload)
    with pytest.raises(ForgedMessage, match="not enrolled"):
        senders.open("c", post("a").seal(ONLINE))


def test_old_status_is_refused_and_the_last_will_is_not(tmp_path: Path) -> None:
    senders = Senders("r", enrolled(tmp_path / "e.json"))
    first = post("a", start=5)
    will, online, later = first.seal(LOST), first.seal(ONLINE), first.seal(ONLINE)
    senders.open("a", later)
    senders.open("a", later)
    with pytest.raises(ForgedMessage, match="played again"):
        senders.open("a", online)
    senders.open("a", will)
    senders.open("a", post("a", start=6).seal(ONLINE))
    with pytest.raises(ForgedMessage, match="played again"):
        senders.open("a", will)


def test_other_messages_need_no_order(tmp_path: Path) -> None:
    senders, own = Senders("r", enrolled(tmp_path / "e.json")), post("a")
    bodies: list[Body] = [Declined("x"), Declined("y")]
    early, late = (own.seal(body, 1) for body in bodies)
    assert [senders.open("a", p).body for p in (late, early, late)] == [bodies[1], bodies[0], bodies[1]]


def test_revocation_counts_from_the_moment_the_file_changes(tmp_path: Path) -> None:
    path = enrolled(tmp_path / "e.json")
    senders = Senders("r", path)
    senders.open("b", post("b").seal(ONLINE))
    assert senders.refresh() == ()
    enrolled(path, "b")
    os.utime(path, ns=(1, 1))
    assert senders.refresh() == ("b",) and senders.refresh() == ()
    with pytest.raises(ForgedMessage, match="revoked"):
        senders.open("b", post("b", start=2).seal(ONLINE))
    senders.open("a", post("a").seal(ONLINE))
    path.write_text("{ half")
    assert senders.refresh() == () and senders.revoked("b")


def test_without_an_enrolment_names_are_believed_and_runs_are_not() -> None:
    senders = Senders("r", None)
    assert not senders.signed and not senders.revoked("a") and senders.refresh() == ()
    senders.open("x", Post("r", "x", None, 1).seal(ONLINE))
    with pytest.raises(ForgedMessage):
        senders.open("x", Post("r", "y", None, 1).seal(ONLINE))


def test_a_flood_of_one_event_is_a_line_a_minute(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l.sqlite")
    now = [0.0]
    log = EventLog(ledger, Clocks(wall=lambda: 5.0, steady=lambda: now[0]))

    def note(at: float, node: str, text: str) -> EventView | None:
        now[0] = at
        return log.note("refused", node, 1, text)

    told = [note(at / 10, "a", "forged") for at in range(1000)]
    assert [event.line() for event in told if event] == [
        "refused a: forged",
        "refused a: forged (599 times more since)",
    ]
    assert note(100.0, "b", "forged") and len(ledger.events()) == 3
    # Words that change each time are no way round it.
    told = [note(200 + at / 100, "c", f"forged {at}") for at in range(4000)]
    assert len([event for event in told if event]) == 30
    last = note(261.0, "c", "forged again")
    assert last and last.text == "forged again (3970 other lines like this left out)"
    ledger.close()
