# SPDX-License-Identifier: Apache-2.0
"""Buffered rounds against the real coordinator: which updates close a round, which are refused, and that a kill changes
nothing."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.run.prepare import Prepared
from coordinator.store.buffer import counting
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import SqliteLedger
from fedcore.wire.files import manifest_of, read_chunk
from fedcore.wire.messages import Ack, Commit, Grant, Offer
from tests.coordinator.messages.buffered_run import BufferedRun
from tests.coordinator.messages.one_round import SCHEMA, WAIT_SECONDS, Node, good

# Who delivers what it trained for which round, in order: rounds close after 2, 4, 6 and 8.
DELIVERIES = (("a", 1), ("b", 1), ("slow", 1), ("a", 2), ("b", 2), ("a", 3), ("slow", 3), ("a", 4))


def led(root: Path, kills: tuple[int, ...] = (), deliveries: tuple[tuple[str, int], ...] = DELIVERIES) -> BufferedRun:
    """A run with these deliveries; its coordinator is killed after some of them, counted from 1."""
    run, left = BufferedRun(root), list(deliveries)
    for upto in (*kills, len(deliveries)):
        with run.life():
            while len(deliveries) - len(left) < upto:
                node, trained_for = left.pop(0)
                assert run.deliver(node, trained_for) == ""
                # Its commit may have been lost: what is offered again is known, and counts once.
                assert run.deliver(node, trained_for) == ""
            if not left:
                run.open(5)
    return run


def test_rounds_close_with_the_first_updates_whichever_round_they_were_trained_for(tmp_path: Path) -> None:
    run = led(tmp_path / "run")
    with closing(SqliteLedger(run.files.ledger)) as ledger:
        rows = ledger.rounds()
        assert [row.participants for row in rows] == [("a", "b"), ("a", "slow"), ("a", "b"), ("a", "slow")]
        root = 46340 / 65536
        assert [row.stale for row in rows] == [{}, {"slow": (1, root)}, {"b": (1, root)}, {"slow": (1, root)}]
        found = [[(row.header.node, row.header.round) for row in counting(ledger, t, 3)] for t in range(1, 5)]
        assert found == [[("a", 1), ("b", 1)], [("a", 2), ("slow", 1)], [("a", 3), ("b", 2)], [("a", 4), ("slow", 3)]]
        assert [plan.max_staleness for t in range(1, 5) if (plan := ledger.plan(t))] == [0, 1, 2, 3]
    # Within a round, who came first changes nothing.
    turned = tuple(one for pair in zip(DELIVERIES[1::2], DELIVERIES[::2], strict=True) for one in pair)
    assert led(tmp_path / "turned", (), turned).digest() == run.digest()


def test_the_ledger_and_the_updates_say_what_every_version_is(tmp_path: Path) -> None:
    run, again = led(tmp_path / "run", (3,)), RunFolder(tmp_path / "again")
    shutil.copytree(run.files.updates, again.updates)
    with closing(SqliteLedger(run.files.ledger)) as ledger:
        prepared = Prepared(run.job, SCHEMA, run.model)
        model = GlobalModel(Learning.of(prepared, ledger.fact("run_id", str) or ""), ScratchKeeping(again), 0)
        for row in ledger.rounds():
            model.begin(row.round, 4096, pytest.fail)
            plan = ledger.plan(row.round)
            assert plan is not None
            done = model.close(plan, counting(ledger, row.round, plan.max_staleness), 4096)
            model.publish(done.objects, done.row)
            assert (done.row.participants, done.row.stale) == (row.participants, row.stale)
    assert done.objects[0].digest == run.digest()


@pytest.mark.parametrize("kills", [(1,), (2,), (3, 5), (7,)])
def test_a_coordinator_that_is_killed_goes_on_with_the_buffer_that_it_had(
    tmp_path: Path, kills: tuple[int, ...]
) -> None:
    run = led(tmp_path / "run", kills)
    assert run.lives == 1 + len(kills)
    assert run.digest() == led(tmp_path / "undisturbed").digest()


def test_what_is_too_old_is_refused_with_the_reason_and_a_second_update_waits_for_the_next_round(
    tmp_path: Path,
) -> None:
    run = BufferedRun(tmp_path, max_staleness=1, rounds=4)
    with run.life():
        for number in (1, 2):
            assert run.deliver("a", number) == run.deliver("b", number) == ""
        run.open(3)
        expired = run.deliver("slow", 1)
        assert expired == "expired: trained for round 1, it would count in round 3: 2 behind, where 1 may be"
        # One that was trained for the round before counts in this one; one for this round, in the next.
        assert run.deliver("slow", 2) == run.deliver("slow", 3) == ""
    with run.life():
        # Killed meanwhile: both are where they were.
        assert run.deliver("b", 3) == ""
        run.open(4)
        assert run.deliver("a", 3) == ""
        run.open(5)
    with closing(SqliteLedger(run.files.ledger)) as ledger:
        rows = ledger.rounds()
        assert [row.participants for row in rows[2:]] == [("b", "slow"), ("a", "slow")]
        assert [{node: behind for node, (behind, _) in row.stale.items()} for row in rows[2:]] == [
            {"slow": 1},
            {"a": 1, "slow": 1},
        ]
        refused = [text for _, kind, node, text in ledger.events() if kind == "refused"]
        assert refused == [expired]


def test_nothing_can_be_delivered_for_a_round_that_is_not_open_yet_or_by_who_was_not_there(tmp_path: Path) -> None:
    run = BufferedRun(tmp_path)
    with run.life():
        first = run.open(1)
        run.plans[3] = msgspec.structs.replace(first, round=3, version=2)
        assert run.deliver("a", 3) == "round 3 is not open"
        assert run.deliver("a", 1) == "" and run.deliver("b", 1) == ""
        run.open(2)
        # It joined after round 1 had opened.
        run.nodes["new"] = Node("new", run.broker)
        assert run.deliver("new", 1) == "not invited to round 1"


def test_a_transfer_goes_on_though_its_round_closes_meanwhile(tmp_path: Path) -> None:
    run = BufferedRun(tmp_path)
    with run.life():
        first, slow = run.open(1), run.nodes["slow"]
        path = tmp_path / "slow.sent"
        good(7)(path, slow.header(first))
        manifest = manifest_of(path, 1024)
        slow.say(first, Offer("1-x", manifest))
        assert isinstance(slow.inbox.get(timeout=WAIT_SECONDS), Grant)
        assert run.deliver("a", 1) == run.deliver("b", 1) == ""
        run.open(2)
        for index in range(manifest.chunks):
            slow.say(first, read_chunk(path, "1-x", index, 1024))
        while not isinstance(told := slow.inbox.get(timeout=WAIT_SECONDS), Commit):
            assert isinstance(told, Ack | Grant), told
        assert run.deliver("a", 2) == ""
        run.open(3)
    with closing(SqliteLedger(run.files.ledger)) as ledger:
        assert ledger.rounds()[1].participants == ("a", "slow")
