# SPDX-License-Identifier: Apache-2.0
"""An operator's commands on the round machine: pause, end a round, exclude and readmit a node."""

from __future__ import annotations

from typing import Any

from coordinator.job import RoundSection
from coordinator.rounds.events import (
    CloseRound,
    Declined,
    DigestReported,
    EndRun,
    Event,
    FinishRun,
    NodeOffline,
    NodeOnline,
    OpenRound,
    RoundPublished,
    Tick,
    UpdateAccepted,
)
from coordinator.rounds.machine import RoundMachine
from coordinator.run.control import (
    Answer,
    Command,
    EndRound,
    Exclude,
    Pause,
    Readmit,
    Resume,
)


def machine(**settings: Any) -> RoundMachine:
    wanted: dict[str, Any] = {"rounds": 3, "min_nodes": 2, "quorum": 2, "deadline_seconds": 100, **settings}
    return RoundMachine(RoundSection(**wanted), 7)


def feed(m: RoundMachine, *events: Event, now: float = 0.0) -> list[object]:
    """The actions, without answers."""
    out: list[object] = []
    for event in events:
        out += [action for action in m.handle(event, now) if not isinstance(action, Answer)]
        m.check()
    return out


def answer(m: RoundMachine, command: Command, now: float = 0.0) -> tuple[bool, str]:
    found = m.handle(command, now)[0]
    m.check()
    assert isinstance(found, Answer)
    return found.done, found.text


def test_paused_means_that_the_open_round_ends_and_no_other_opens() -> None:
    m = machine()
    feed(m, NodeOnline("a"), NodeOnline("b"))
    assert answer(m, Pause()) == (True, "paused: round 1 goes on to its end, and no other opens")
    assert answer(m, Pause()) == (True, "already paused")
    assert feed(m, UpdateAccepted("a", 1), UpdateAccepted("b", 1)) == [CloseRound(1, ("a", "b"))]
    assert feed(m, RoundPublished(1), Tick(), NodeOnline("c"), now=500) == [] and m.phase == "waiting"
    assert feed(m, Resume(), now=600) == [OpenRound(2, ("a", "b", "c"), 700.0)]
    assert answer(m, Resume()) == (True, "not paused")


def test_a_paused_round_without_a_quorum_opens_again_only_after_the_pause() -> None:
    m = machine()
    feed(m, NodeOnline("a"), NodeOnline("b"), UpdateAccepted("a", 1), Pause())
    assert feed(m, Tick(), NodeOnline("c"), Declined("b", 1), now=150) == [] and m.phase == "open"
    assert feed(m, Resume(), now=160) == [OpenRound(1, ("a", "c"), 260.0)]


def test_paused_before_the_first_round_and_at_the_last_one() -> None:
    m = machine(rounds=1)
    assert answer(m, Pause()) == (True, "paused: round 1 does not open")
    assert feed(m, NodeOnline("a"), NodeOnline("b")) == []
    feed(m, Resume(), Pause(), UpdateAccepted("a", 1), UpdateAccepted("b", 1))
    # The run's end is no further round.
    assert feed(m, RoundPublished(1)) == [FinishRun()]
    assert answer(m, Resume()) == (False, "the run is finishing: no further round opens")


def test_a_round_ends_now_if_its_quorum_is_in() -> None:
    m = machine()
    assert answer(m, EndRound()) == (False, "no round is open")
    feed(m, *map(NodeOnline, "abc"))
    feed(m, Tick(), UpdateAccepted("a", 1))
    assert answer(m, EndRound()) == (False, "round 1 has 1 of 2 updates, and its quorum is 2") and m.phase == "open"
    m = machine(min_nodes=3)
    feed(m, *map(NodeOnline, "abc"), UpdateAccepted("a", 1), UpdateAccepted("c", 1))
    assert m.handle(EndRound(), 5.0) == [Answer(True, "ended: round 1 has 2 of 3 updates"), CloseRound(1, ("a", "c"))]
    # The third is late, and is told so as always.
    assert feed(m, UpdateAccepted("b", 1)) == []


def test_an_excluded_node_is_not_waited_for_and_not_invited() -> None:
    m = machine(min_nodes=3)
    feed(m, *map(NodeOnline, "abc"), UpdateAccepted("a", 1), UpdateAccepted("b", 1))
    assert m.handle(Exclude("c"), 1.0) == [
        Answer(True, "c is excluded: round 1 does not wait for it, and it is not invited to further rounds"),
        CloseRound(1, ("a", "b")),
    ]
    assert feed(m, RoundPublished(1), now=2) == [OpenRound(2, ("a", "b"), 102.0)]
    assert answer(m, Exclude("c")) == (True, "c is already excluded")
    assert answer(m, Readmit("a")) == (True, "a is not excluded")
    assert answer(m, Readmit("c")) == (True, "c is invited again")
    feed(m, UpdateAccepted("a", 2), UpdateAccepted("b", 2))
    assert feed(m, RoundPublished(2), now=3) == [OpenRound(3, ("a", "b", "c"), 103.0)]


def test_what_an_excluded_node_sent_in_the_open_round_counts() -> None:
    m = machine(min_nodes=3)
    feed(m, *map(NodeOnline, "abc"), UpdateAccepted("c", 1))
    assert answer(m, Exclude("c")) == (
        True,
        "c is excluded: its update of round 1 counts, and it is not invited to further rounds",
    )
    assert feed(m, UpdateAccepted("a", 1), UpdateAccepted("b", 1)) == [CloseRound(1, ("a", "b", "c"))]


def test_too_few_are_left_is_said_and_the_run_waits_for_others() -> None:
    m = machine()
    feed(m, NodeOnline("a"), NodeOnline("b"), UpdateAccepted("a", 1))
    done, text = answer(m, Exclude("b"))
    assert done and text.endswith("; 1 nodes are left, and the quorum is 2")
    assert feed(m, Tick(), now=50) == [] and m.phase == "open"
    # Past its deadline it opens again with whoever may take part.
    assert feed(m, NodeOnline("c"), now=60) == [OpenRound(1, ("a", "c"), 160.0)]


def test_with_everybody_excluded_nothing_opens_until_somebody_may_come() -> None:
    m = machine(quorum=1, min_nodes=1)
    feed(m, NodeOnline("a"))
    assert feed(m, Exclude("a"), Tick(), NodeOffline("a"), NodeOnline("a"), now=500) == []
    assert feed(m, Readmit("a"), now=600) == [OpenRound(1, ("a",), 700.0)]


def test_an_excluded_node_is_not_waited_for_at_the_end() -> None:
    m = machine(rounds=1, min_nodes=3)
    feed(m, *map(NodeOnline, "abc"), *(UpdateAccepted(node, 1) for node in "abc"))
    assert feed(m, RoundPublished(1), DigestReported("a", 1, "x"), DigestReported("b", 1, "x")) == [FinishRun()]
    assert feed(m, Exclude("c")) == [EndRun()]
