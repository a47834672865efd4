# SPDX-License-Identifier: Apache-2.0
"""Buffered rounds in the round machine: events in, exact actions out."""

from __future__ import annotations

import random
from typing import Any

import pytest

from coordinator.rounds.events import (
    CloseRound,
    Declined,
    DigestReported,
    EndRound,
    Event,
    Exclude,
    FinishRun,
    NodeOffline,
    NodeOnline,
    OpenRound,
    Pause,
    Resume,
    Revoked,
    RoundPublished,
    Tick,
    UpdateAccepted,
)
from coordinator.rounds.machine import RoundMachine
from coordinator.rounds.section import RoundSection
from fedcore.errors import ConfigError


def machine(untimed: frozenset[int] = frozenset(), **settings: Any) -> RoundMachine:
    wanted: dict[str, Any] = {
        "kind": "buffered",
        "buffer_size": 2,
        "rounds": 9,
        "min_nodes": 3,
        "deadline_seconds": 100,
    }
    return RoundMachine(RoundSection(**{**wanted, **settings}), 7, untimed=untimed)


def feed(m: RoundMachine, *events: Event, now: float = 0.0) -> list[object]:
    out: list[object] = []
    for event in events:
        out += m.handle(event, now)
        m.check()
    return out


def deliver(m: RoundMachine, node: str, now: float = 0.0) -> list[object]:
    """An update of a node, wherever it counts."""
    into = m.place(node)
    assert into
    return feed(m, UpdateAccepted(node, into), now=now)


ALL = ("a", "b", "slow")


def opened(**settings: Any) -> RoundMachine:
    m = machine(**settings)
    assert feed(m, *map(NodeOnline, ALL)) == [OpenRound(1, ALL, 100.0)]
    return m


def test_a_round_closes_with_a_full_buffer_and_a_late_update_counts_in_the_round_that_is_open_then() -> None:
    m = opened()
    assert deliver(m, "a", now=1) == [] and deliver(m, "b", now=2) == [CloseRound(1, ("a", "b"))]
    assert feed(m, RoundPublished(1), now=3) == [OpenRound(2, ALL, 103.0)]
    # Trained for round 1.
    assert deliver(m, "slow", now=4) == []
    assert deliver(m, "b", now=5) == [CloseRound(2, ("b", "slow"))]


def test_a_second_update_of_a_node_waits_for_the_next_round() -> None:
    m = opened(buffer_size=3)
    assert deliver(m, "slow") == [] and m.place("slow") == 2
    assert deliver(m, "slow") == [] and m.place("slow") == 0, "one is in the buffer, one is held"
    assert deliver(m, "a") == [] and deliver(m, "b") == [CloseRound(1, ALL)]
    (again,) = feed(m, RoundPublished(1))
    assert isinstance(again, OpenRound) and m.accepted == {"slow"} and m.held == set()
    # What it is told twice counts once.
    assert feed(m, UpdateAccepted("slow", 1), UpdateAccepted("slow", 2)) == [] and m.accepted == {"slow"}
    assert deliver(m, "a") == [] and deliver(m, "b") == [CloseRound(2, ALL)]


def test_a_node_that_vanished_holds_nobody_and_its_update_counts_when_it_is_back() -> None:
    m = opened()
    feed(m, NodeOffline("slow"))
    for number in range(1, 4):
        assert deliver(m, "a") == [] and deliver(m, "b") == [CloseRound(number, ("a", "b"))]
        feed(m, RoundPublished(number))
    assert m.cohort == ("a", "b")
    # It comes back with what it trained for round 1, and is invited to the next round.
    feed(m, NodeOnline("slow"))
    assert deliver(m, "slow") == [] and m.accepted == {"slow"}
    assert deliver(m, "a") == [CloseRound(4, ("a", "slow"))]
    assert feed(m, RoundPublished(4), now=9) == [OpenRound(5, ALL, 109.0)]


def test_the_deadline_closes_with_the_quorum_and_opens_again_without_forgetting_whom_it_invited() -> None:
    m = opened(quorum=2, buffer_size=3)
    assert deliver(m, "a", now=5) == [] and feed(m, NodeOffline("slow"), NodeOnline("c")) == []
    assert feed(m, Tick(), now=100) == [OpenRound(1, ("a", "b", "c", "slow"), 200.0)]
    assert deliver(m, "slow", now=150) == [], "invited before, away as the round opened again"
    assert feed(m, Tick(), now=200) == [CloseRound(1, ("a", "slow"))]


def test_who_lets_deadlines_pass_is_only_slow() -> None:
    m, now = opened(quorum=1, buffer_size=3, deadline_slack=0), 0.0
    for number in range(1, 6):
        deliver(m, "a", now=now + 1)
        now += 100
        assert feed(m, Tick(), now=now) == [CloseRound(number, ("a",))]
        assert feed(m, RoundPublished(number), now=now) == [OpenRound(number + 1, ALL, now + 100)]


def test_a_round_closes_when_everybody_has_delivered_though_its_buffer_has_room() -> None:
    m = opened(buffer_size=9)
    assert deliver(m, "a") == deliver(m, "b") == []
    assert deliver(m, "slow") == [CloseRound(1, ALL)]


def test_the_round_for_the_head_waits_for_all_and_takes_nothing_that_was_trained_before() -> None:
    m = opened(untimed=frozenset({1}))
    assert not m.is_buffered and feed(m, UpdateAccepted("a", 1), UpdateAccepted("b", 1)) == []
    assert feed(m, UpdateAccepted("slow", 1)) == [CloseRound(1, ALL)]
    feed(m, RoundPublished(1))
    assert m.is_buffered
    assert deliver(m, "a") == [] and deliver(m, "b") == [CloseRound(2, ("a", "b"))]


def test_what_comes_while_nothing_is_open_is_in_the_buffer_of_the_round_that_opens_next() -> None:
    m = opened()
    feed(m, Pause())
    assert deliver(m, "a") == [] and deliver(m, "b") == [CloseRound(1, ("a", "b"))]
    assert feed(m, RoundPublished(1)) == [] and m.phase == "waiting"
    assert deliver(m, "slow") == [] and m.place("slow") == 0
    (_, again) = feed(m, Resume())
    assert again == OpenRound(2, ALL, 100.0) and m.accepted == {"slow"}
    assert deliver(m, "b") == [CloseRound(2, ("b", "slow"))]


def test_commands_and_revoked_keys_hold_for_the_buffer_too() -> None:
    m = opened(buffer_size=3)
    deliver(m, "slow"), deliver(m, "slow")
    feed(m, Revoked("slow"), Exclude("b"))
    assert m.accepted == m.held == set()
    assert deliver(m, "a") == [CloseRound(1, ("a",))], "there is nobody else to wait for"
    m = opened(buffer_size=3)
    deliver(m, "a")
    (answer, closed) = feed(m, EndRound())
    assert closed == CloseRound(1, ("a",)), answer


def test_an_interrupted_run_goes_on_with_the_buffer_that_it_had() -> None:
    m = machine()
    m.resume_open(("a", "b"), {"slow"}, 50.0)
    m.held = {"slow"}
    m.check()
    feed(m, NodeOnline("a"))
    assert deliver(m, "a") == [CloseRound(1, ("a", "slow"))]
    feed(m, RoundPublished(1))
    assert m.phase == "open" and m.accepted == {"slow"}


def test_the_last_round_holds_nothing_for_one_that_never_opens() -> None:
    m = opened(rounds=1, buffer_size=3)
    deliver(m, "a")
    assert m.place("a") == 0
    deliver(m, "b")
    assert deliver(m, "slow") == [CloseRound(1, ALL)]
    assert feed(m, RoundPublished(1)) == [FinishRun()] and m.place("a") == 0


@pytest.mark.parametrize("seed", range(40))
def test_any_events_keep_the_invariants_and_every_update_counts_once(seed: int) -> None:
    chance, now = random.Random(seed), 0.0
    m = machine(quorum=chance.choice((1, 2)), rounds=12, buffer_size=chance.choice((2, 3)))
    nodes, given, counted = ["a", "b", "c", "d"], list[tuple[str, int]](), list[tuple[str, int]]()
    for _ in range(600):
        now += chance.choice((0.0, 1.0, 40.0))
        node = chance.choice(nodes)
        into = m.place(node)
        deliveries: list[Event] = [UpdateAccepted(node, into)] * 3 if into else []
        others: list[Event] = [NodeOnline(node), NodeOffline(node), Declined(node, m.round), Tick(), Pause(), Resume()]
        event = chance.choice([*deliveries, *others, DigestReported(node, m.published, "x")])
        if isinstance(event, UpdateAccepted):
            given.append((node, into))
        for action in feed(m, event, now=now):
            if isinstance(action, CloseRound):
                assert m.settings.quorum <= len(action.participants)
                counted += [(name, action.round) for name in action.participants]
                feed(m, RoundPublished(action.round), now=now)
    left = [(name, m.round) for name in m.accepted] + [(name, m.next_round) for name in m.held]
    assert sorted(counted + left) == sorted(given) and len(set(given)) == len(given)
    assert counted


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "synchronous"}, "round.buffer_size: only buffered rounds have a buffer"),
        ({"buffer_size": 0}, "round.buffer_size: buffer_size is 0: it says of how many updates a version is made"),
        ({"quorum": 3}, "round.quorum: a quorum of 3 cannot come from a buffer of 2"),
        ({"max_staleness": -1}, "round.max_staleness: max_staleness is -1, it must be from 0 to 1000"),
        ({"cohort": 5}, "round.cohort: a buffered round invites everybody that is online"),
        ({"cohort": 5, "over_selection": 0.5}, "round.cohort: a buffered round invites everybody"),
    ],
)
def test_a_section_that_means_nothing_is_refused_by_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        machine(**settings)
    assert str(refused.value).startswith(words)
