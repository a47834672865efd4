# SPDX-License-Identifier: Apache-2.0
"""The round machine: lists of events in, exact lists of actions out, invariants after each."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from coordinator.job import RoundSection
from coordinator.rounds.cohort import choose_cohort
from coordinator.rounds.events import (
    Arriving,
    CloseRound,
    Declined,
    DigestReported,
    EndRun,
    Event,
    FinishRun,
    Judged,
    NodeOffline,
    NodeOnline,
    OpenRound,
    Revoked,
    RoundPublished,
    Silent,
    Tick,
    UpdateAccepted,
)
from coordinator.rounds.machine import RoundMachine
from coordinator.store.ledger import RoundRow, SqliteLedger, UpdateRow
from fedcore.errors import RunError
from fedcore.round.header import UpdateHeader


def machine(**settings: Any) -> RoundMachine:
    wanted: dict[str, Any] = {"rounds": 2, "min_nodes": 2, "quorum": 2, "deadline_seconds": 100, **settings}
    return RoundMachine(RoundSection(**wanted), 7)


def feed(m: RoundMachine, *events: Event, now: float = 0.0) -> list[object]:
    out: list[object] = []
    for event in events:
        out += m.handle(event, now)
        m.check()
    return out


def test_a_whole_run() -> None:
    m = machine()
    assert feed(m, NodeOnline("b"), Tick()) == []
    assert feed(m, NodeOnline("a")) == [OpenRound(1, ("a", "b"), 100.0)]
    assert feed(m, UpdateAccepted("a", 1)) == []
    assert feed(m, UpdateAccepted("b", 1)) == [CloseRound(1, ("a", "b"))]
    assert feed(m, RoundPublished(1), now=5) == [OpenRound(2, ("a", "b"), 105.0)]
    assert feed(m, UpdateAccepted("a", 2), UpdateAccepted("b", 2)) == [CloseRound(2, ("a", "b"))]
    assert feed(m, RoundPublished(2)) == [FinishRun()]
    assert feed(m, DigestReported("a", 2, "x"), DigestReported("b", 1, "y")) == []
    assert feed(m, DigestReported("b", 2, "x")) == [EndRun()]


def test_deadline_closes_with_quorum_and_reopens_without() -> None:
    m = machine(quorum=1, min_nodes=2)
    feed(m, NodeOnline("a"), NodeOnline("b"))
    assert feed(m, Tick(), now=100) == [OpenRound(1, ("a", "b"), 200.0)]
    assert feed(m, UpdateAccepted("b", 1), now=150) == []
    # Once may happen to anybody; who lets two deadlines in a row pass is named.
    assert feed(m, Tick(), now=200) == [Silent("a", 2, until=3), CloseRound(1, ("b",))]
    # Late: the round is no longer open.
    assert feed(m, UpdateAccepted("a", 1)) == []


def test_decliners_do_not_hold_a_round_up_and_others_are_asked() -> None:
    m = machine(quorum=1, min_nodes=1, cohort=1)
    first = feed(m, NodeOnline("a"))
    assert first == [OpenRound(1, ("a",), 100.0)]
    feed(m, NodeOnline("b"))
    assert feed(m, Declined("a", 1), now=3) == [OpenRound(1, ("b",), 103.0)]
    assert feed(m, UpdateAccepted("b", 1)) == [CloseRound(1, ("b",))]


def test_a_decliner_that_changes_its_mind_is_taken_while_the_round_is_open_and_invites_it() -> None:
    m = machine(quorum=2, min_nodes=2)
    feed(m, NodeOnline("a"), NodeOnline("b"), UpdateAccepted("a", 1))
    assert feed(m, Declined("b", 1), now=3) == [] and m.phase == "open"
    assert feed(m, UpdateAccepted("b", 1), now=9) == [CloseRound(1, ("a", "b"))]
    # It came after somebody else was invited in its place: not its round any more.
    other = machine(quorum=1, min_nodes=1, cohort=1)
    feed(other, NodeOnline("a"), NodeOnline("b"), Declined("a", 1))
    assert feed(other, UpdateAccepted("a", 1)) == [] and other.cohort == ("b",)


def test_a_fleet_that_rests_is_asked_again_at_the_deadline_and_not_before() -> None:
    m = machine(quorum=2, min_nodes=3, cohort=2)
    (opened,) = feed(m, *map(NodeOnline, "abc"))
    assert isinstance(opened, OpenRound)
    first, second = opened.cohort
    (third,) = set("abc") - {first, second}
    assert feed(m, Declined(first, 1), now=1) == []
    # One is left. It is invited at once, with one of the others, in case that one changes its mind.
    (again,) = feed(m, Declined(second, 1), now=2)
    assert isinstance(again, OpenRound) and third in again.cohort and len(again.cohort) == 2
    assert feed(m, Declined(third, 1), now=3) == []
    for now in range(4, 102):
        assert feed(m, Tick(), *(Declined(node, 1) for node in again.cohort), NodeOnline("a"), now=now) == []
    (late,) = feed(m, Tick(), now=102)
    assert isinstance(late, OpenRound) and late.deadline_at == 202
    # All may now take part, also who declined before.
    assert feed(m, *(UpdateAccepted(node, 1) for node in late.cohort), now=150) == [CloseRound(1, late.cohort)]


def test_updates_of_an_open_round_survive_its_reopening() -> None:
    m = machine(min_nodes=2, quorum=2)
    feed(m, NodeOnline("a"), NodeOnline("b"), UpdateAccepted("a", 1), NodeOffline("b"), NodeOnline("c"))
    assert feed(m, Tick(), now=100) == [OpenRound(1, ("a", "c"), 200.0)]
    assert feed(m, UpdateAccepted("c", 1)) == [CloseRound(1, ("a", "c"))]


def test_a_masked_round_that_misses_its_quorum_ends_with_what_it_has_and_opens_again_with_nothing() -> None:
    """Updates that are masked for one cohort are of no use to another; what closing comes to is not the machine's."""
    m = machine(quorum=2, min_nodes=3)
    m.masked = True
    feed(m, NodeOnline("a"), NodeOnline("b"), NodeOnline("c"))
    assert feed(m, Tick(), now=100) == [OpenRound(1, ("a", "b", "c"), 200.0)]
    assert feed(m, UpdateAccepted("b", 1), now=150) == []
    assert feed(m, Tick(), now=200) == [Silent("a", 2, until=3), Silent("c", 2, until=3), CloseRound(1, ("b",))]
    assert feed(m, RoundPublished(1), now=210) == [OpenRound(2, ("a", "b", "c"), 310.0)]


def test_who_is_online_and_sends_nothing_is_invited_less_and_less_and_named() -> None:
    m = machine(rounds=40, quorum=1, min_nodes=3, cohort=0, deadline_slack=10, least_deadline_seconds=5)
    invited, silent, now, took = list[int](), list[Silent](), 1000.0, list[float]()
    actions = feed(m, *map(NodeOnline, ("a", "b", "mute")), now=now)
    for _ in range(40):
        (opened,) = [action for action in actions if isinstance(action, OpenRound)]
        if "mute" in opened.cohort:
            invited.append(opened.round)
        feed(m, UpdateAccepted("a", m.round), UpdateAccepted("b", m.round), now=now + 2)
        closed: list[object] = []
        if m.phase == "open":
            closed = feed(m, Tick(), now=opened.deadline_at)
        silent += [action for action in closed if isinstance(action, Silent)]
        took.append(opened.deadline_at - now)
        now += 200
        actions = feed(m, RoundPublished(m.round), now=now)
        if m.phase == "finishing":
            break
    # Left out for 1, 3, 7, 15 rounds, and its first deadline is the only one in full: nobody waits longer for it than
    # for the others.
    assert invited == [1, 2, 4, 8, 16, 32] and [one.missed for one in silent] == [2, 3, 4, 5, 6]
    assert took[0] == 100 and max(took[1:]) == 20
    # Its first update makes it one of all.
    again = machine(quorum=1, min_nodes=1, rounds=9)
    feed(again, NodeOnline("a"), Tick(), now=0)
    feed(again, Tick(), now=100)
    feed(again, Tick(), now=200)
    assert again.attendance.away(1) == {"a"} and again.cohort == ("a",), "there is nobody else"
    feed(again, UpdateAccepted("a", 1), now=201)
    assert again.attendance.away(1) == set() and again.attendance.missed == {}


def test_silent_nodes_do_not_hold_up_the_end() -> None:
    m = machine(rounds=1, quorum=1, min_nodes=1, finish_seconds=10)
    feed(m, NodeOnline("a"), UpdateAccepted("a", 1))
    assert feed(m, RoundPublished(1), now=0) == [FinishRun()]
    assert feed(m, Tick(), now=9) == []
    assert feed(m, Tick(), now=10) == [EndRun()]


def test_illegal_transition_tells_the_story() -> None:
    m = machine()
    with pytest.raises(RunError, match="cannot go from waiting to closing"):
        m._go("closing")


@pytest.mark.parametrize("seed", range(40))
def test_any_events_keep_the_invariants_and_no_round_closes_below_quorum(seed: int) -> None:
    chance, m, now = random.Random(seed), machine(rounds=3, cohort=chance_of(seed)), 0.0
    nodes = ["a", "b", "c", "d"]
    for _ in range(400):
        now += chance.choice((0.0, 1.0, 60.0))
        node, t = chance.choice(nodes), m.round + chance.choice((-1, 0, 0, 0))
        events: list[Event] = [
            NodeOnline(node),
            NodeOffline(node),
            UpdateAccepted(node, t),
            Declined(node, t),
            Tick(),
            DigestReported(node, t, "x"),
        ]
        for action in feed(m, chance.choice(events), now=now):
            if isinstance(action, CloseRound):
                assert len(action.participants) >= 2
                feed(m, RoundPublished(action.round), now=now)
    assert m.published <= 3


def chance_of(seed: int) -> int:
    return (0, 2, 3)[seed % 3]


def test_cohort_does_not_depend_on_who_else_is_there() -> None:
    all_nodes = [f"n{i}" for i in range(20)]
    chosen = choose_cohort(all_nodes, 5, 1, 1)
    assert len(chosen) == 5 and chosen == choose_cohort(reversed(all_nodes), 5, 1, 1)
    assert choose_cohort([*chosen, "n0"], 5, 1, 1)[:1] and choose_cohort(all_nodes, 5, 1, 2) != chosen
    counts = {n: sum(n in choose_cohort(all_nodes, 5, 1, t) for t in range(400)) for n in all_nodes}
    assert min(counts.values()) > 60 and max(counts.values()) < 140


def test_ledger_keeps_the_first_update_and_survives_reopening(tmp_path: Path) -> None:
    header = UpdateHeader(
        run="r", round=1, node="a", version=0, examples=3, rank=8, subspaces=(0,), loss=1.0, seconds=1.0
    )
    ledger = SqliteLedger(tmp_path / "l")
    assert ledger.put_update(UpdateRow("1-x", "f", 10, header))
    assert not ledger.put_update(UpdateRow("1-y", "g", 10, header))
    ledger.put_published([], RoundRow(1, ("a",), 1, 2, 3.0, 0.5))
    ledger.note(1.0, "refused", "b", "late")
    ledger.close()
    again = SqliteLedger(tmp_path / "l")
    assert [row.transfer for row in again.updates(1)] == ["1-x"]
    assert again.rounds()[0].participants == ("a",) and again.events() == [(1.0, "refused", "b", "late")]
    again.close()


def test_ledger_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "l").write_text("not a database, but long enough to look at " * 40)
    with pytest.raises(RunError, match="the ledger cannot be opened"):
        SqliteLedger(tmp_path / "l")


def test_who_says_goodbye_is_not_waited_for_and_who_is_lost_is() -> None:
    m = machine(quorum=1, rounds=1)
    feed(m, NodeOnline("a"), NodeOnline("b"))
    assert feed(m, UpdateAccepted("a", 1), NodeOffline("b")) == []
    assert feed(m, NodeOnline("b"), NodeOffline("b", left=True)) == [CloseRound(1, ("a",))]
    assert feed(m, RoundPublished(1), DigestReported("a", 1, "x")) == [FinishRun(), EndRun()]


def test_deadline_comes_from_the_slowest_invited_node_once_all_were_timed() -> None:
    m = machine(rounds=9, deadline_seconds=3600, deadline_slack=10, least_deadline_seconds=60)
    assert feed(m, NodeOnline("a"), NodeOnline("b"), now=1000) == [OpenRound(1, ("a", "b"), 4600.0)]
    feed(m, UpdateAccepted("a", 1), now=1003)
    feed(m, UpdateAccepted("b", 1), now=1020)
    assert feed(m, RoundPublished(1), now=1021) == [OpenRound(2, ("a", "b"), 1221.0)]
    feed(m, UpdateAccepted("a", 2), UpdateAccepted("b", 2), now=1023)
    assert feed(m, RoundPublished(2), now=1024) == [OpenRound(3, ("a", "b"), 1084.0)]
    feed(m, NodeOnline("c"), UpdateAccepted("a", 3), UpdateAccepted("b", 3), now=1025)
    # Nobody knows yet how fast c is.
    assert feed(m, RoundPublished(3), now=1026) == [OpenRound(4, ("a", "b", "c"), 4626.0)]


def test_more_are_invited_and_the_first_ones_close_the_round() -> None:
    m = machine(cohort=2, over_selection=0.5, min_nodes=3)
    (opened,) = feed(m, *map(NodeOnline, "abcd"))
    assert isinstance(opened, OpenRound) and len(opened.cohort) == 3
    first, second, third = opened.cohort
    assert feed(m, UpdateAccepted(third, 1)) == []
    assert feed(m, UpdateAccepted(first, 1)) == [CloseRound(1, tuple(sorted((first, third))))]
    assert feed(m, UpdateAccepted(second, 1)) == []


def test_an_update_on_its_way_keeps_the_round_open_while_it_makes_progress() -> None:
    m = machine(quorum=1)
    feed(m, NodeOnline("a"), NodeOnline("b"), UpdateAccepted("a", 1))
    feed(m, Arriving("b", 1), now=95)
    assert feed(m, Tick(), now=101) == []
    feed(m, Arriving("b", 1), now=110)
    assert feed(m, Tick(), now=120) == []
    assert feed(m, Tick(), now=126) == [CloseRound(1, ("a",))]
    # No progress is made for ever: twice the time is the end.
    slow = machine(quorum=1)
    feed(slow, NodeOnline("a"), NodeOnline("b"), UpdateAccepted("a", 1))
    feed(slow, Arriving("b", 1), now=199)
    assert feed(slow, Tick(), now=200) == [CloseRound(1, ("a",))]


def test_what_a_revoked_node_sent_in_the_open_round_is_left_out() -> None:
    m = machine(quorum=1)
    feed(m, NodeOnline("a"), NodeOnline("b"), UpdateAccepted("b", 1))
    assert feed(m, Revoked("b")) == []
    assert feed(m, UpdateAccepted("a", 1)) == [CloseRound(1, ("a",))]
    assert [a.cohort for a in feed(m, RoundPublished(1)) if isinstance(a, OpenRound)] == [("a",)]


def test_a_run_that_may_end_early_waits_for_the_state_before_the_last_to_be_measured() -> None:
    m = machine(rounds=9)
    m.judging = True
    updates = UpdateAccepted("a", 1), UpdateAccepted("b", 1)
    feed(m, NodeOnline("a"), NodeOnline("b"), *updates)
    # Nothing is known of any state yet, and nothing has to be.
    assert feed(m, Judged(0, None), RoundPublished(1)) == [OpenRound(2, ("a", "b"), 100.0)]
    feed(m, UpdateAccepted("a", 2), UpdateAccepted("b", 2))
    assert feed(m, RoundPublished(2)) == [] and m.phase == "waiting"
    assert feed(m, Tick()) == []
    assert feed(m, Judged(1, None)) == [OpenRound(3, ("a", "b"), 100.0)]
    # What came fast is not looked at before its turn: the next round opens either way.
    feed(m, UpdateAccepted("a", 3), UpdateAccepted("b", 3))
    assert feed(m, Judged(3, 3), RoundPublished(3)) == [OpenRound(4, ("a", "b"), 100.0)]
    feed(m, UpdateAccepted("a", 4), UpdateAccepted("b", 4))
    assert feed(m, RoundPublished(4)) == [FinishRun()]


def test_a_resumed_run_that_had_ended_early_opens_no_round() -> None:
    m = RoundMachine(RoundSection(rounds=9, min_nodes=1), 7, published=5, judging=True)
    m.seen.add("a")
    assert feed(m, Judged(4, 4)) == [FinishRun()]


def test_a_node_that_measures_the_last_state_is_waited_for_while_it_says_so() -> None:
    m = machine(rounds=1, finish_seconds=10)
    feed(m, NodeOnline("a"), NodeOnline("b"), UpdateAccepted("a", 1), UpdateAccepted("b", 1))
    assert feed(m, RoundPublished(1), DigestReported("a", 1, "d")) == [FinishRun()]
    assert feed(m, Arriving("b", 2), Tick(), now=9) == []
    assert feed(m, Tick(), now=20) == [] and m.phase == "finishing"
    assert feed(m, Tick(), now=25) == [EndRun()]


def test_who_lets_its_turn_pass_goes_to_the_end() -> None:
    m = machine(rounds=9, cohort=1, order="cycle", quorum=1, min_nodes=3)
    assert feed(m, NodeOnline("a"), NodeOnline("b"), NodeOnline("c"))[0] == OpenRound(1, ("a",), 100.0)
    assert feed(m, UpdateAccepted("a", 1), RoundPublished(1))[1] == OpenRound(2, ("b",), 100.0)
    # Silent in its turn: the next one has it, and the round after goes on from there.
    assert feed(m, Tick(), now=101)[0] == OpenRound(2, ("c",), 201.0)
    assert feed(m, UpdateAccepted("c", 2), RoundPublished(2), now=102)[1].cohort == ("a",)  # type: ignore[attr-defined]
    assert feed(m, UpdateAccepted("a", 3), RoundPublished(3), now=103)[1].cohort == ("b",)  # type: ignore[attr-defined]
    # A life that goes on knows whose turn it was, and a round of another kind is everybody's.
    resumed = RoundMachine(m.settings, 7, published=2, turns={"a": 1, "c": 2})
    assert feed(resumed, NodeOnline("c"), NodeOnline("a"))[-1].cohort in (("a",), ("c",))  # type: ignore[attr-defined]
    other = RoundMachine(m.settings, 7, untimed=frozenset({1}))
    assert feed(other, NodeOnline("a"), NodeOnline("b"), NodeOnline("c"))[0] == OpenRound(1, ("a", "b", "c"), 100.0)
