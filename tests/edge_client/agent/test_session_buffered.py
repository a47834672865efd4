# SPDX-License-Identifier: Apache-2.0
"""The client's state machine where rounds are buffered: what it trains for a round counts in later ones too."""

from __future__ import annotations

import random

import msgspec
import pytest

import edge_client.agent.events as s
from edge_client.agent.session import Session
from fedcore.fields.manifest import Manifest
from fedcore.round.plan import Plan, StateObject
from tests.edge_client.agent.test_session import feed, obj
from tests.edge_client.agent.test_session import plan as made


def whole(version: int) -> StateObject:
    return StateObject(version, 0, None, f"d{version}", Manifest("o", 100, f"{version:064d}", 64))


def plan(t: int, *, kept: int = 2, cohort: tuple[str, ...] = ("n",), most: int = 3) -> Plan:
    objects = tuple(whole(version) for version in range(max(1, t - kept), t))
    return msgspec.structs.replace(made(t, objects, cohort=cohort), max_staleness=min(most, t - 1))


def training(t: int = 1) -> Session:
    """A node that trains for a round."""
    session, asked = Session("n"), plan(t)
    feed(session, s.PlanArrived(asked))
    assert feed(session, s.WorkerReady(t - 1, 0, f"d{t - 1}")) == [s.TrainRound(asked)]
    return session


def test_what_is_trained_while_versions_go_on_is_delivered_and_the_newest_is_taken_up() -> None:
    session = training()
    assert feed(session, s.PlanArrived(plan(2)), s.PlanArrived(plan(3))) == []
    assert session.heard == plan(3) and session.plan == plan(1)
    assert feed(session, s.UpdateReady(1)) == [s.SendUpdate(1)]
    # On its way, whatever is announced.
    assert feed(session, s.PlanArrived(plan(4))) == [] and session.state == "sending"
    assert feed(session, s.UpdateGone(1)) == [s.Fetch(whole(3))]
    assert feed(session, s.Fetched(whole(3).manifest.sha256), s.Adopted(3, 0, "d3"))[-1] == s.TrainRound(plan(4))


def test_what_is_too_old_is_dropped_as_in_a_synchronous_round() -> None:
    session = training()
    feed(session, s.PlanArrived(plan(2)), s.PlanArrived(plan(5)))
    assert session.plan == plan(5), "an update for round 1 is four rounds behind"
    late, fetch = feed(session, s.UpdateReady(1))
    assert isinstance(late, s.Decline) and late.round == 1 and fetch == s.Fetch(whole(4))


def test_an_update_that_expires_on_its_way_makes_room_for_the_newest_plan() -> None:
    session = training()
    feed(session, s.UpdateReady(1), s.PlanArrived(plan(3)))
    assert session.state == "sending"
    assert feed(session, s.PlanArrived(plan(5))) == [s.Fetch(whole(4))]


def test_a_refused_update_is_followed_by_the_newest_plan() -> None:
    session = training()
    feed(session, s.PlanArrived(plan(2)), s.UpdateReady(1))
    assert feed(session, s.UpdateGone(1, "expired")) == [s.Fetch(whole(1))]
    assert session.reason == "expired"


def test_a_restarted_node_offers_what_lies_on_its_disk_whoever_is_invited() -> None:
    session = Session("n", sent_round=1, update_round=2)
    newest = plan(4, cohort=("other",))
    assert feed(session, s.PlanArrived(newest)) == [s.SendUpdate(2)]
    assert feed(session, s.UpdateGone(2)) == [s.Configure(newest)]
    # One that is too old is trained anew.
    session, newest = Session("n", sent_round=1, update_round=2), plan(9)
    assert feed(session, s.PlanArrived(newest)) == [s.Configure(newest)]


def test_a_worker_that_dies_goes_on_with_the_plan_that_it_had_begun() -> None:
    session = training()
    feed(session, s.PlanArrived(plan(2)))
    assert feed(session, s.WorkerFailed("killed", died=True)) == [s.Configure(plan(1))]
    # From the last finished interval: its replica is where the plan starts.
    assert feed(session, s.WorkerReady(0, 0, "d0")) == [s.TrainRound(plan(1))]


def test_a_node_that_rested_goes_on_too_while_its_update_would_count() -> None:
    session = training()
    assert feed(session, s.MustRest("policy", "on battery")) == [s.LetGo(), s.Decline(1, "on battery")]
    assert feed(session, s.PlanArrived(plan(2))) == []
    assert feed(session, s.MayWork("policy"), s.WorkerReady(0, 0, "d0")) == [
        s.Configure(plan(1)),
        s.TrainRound(plan(1)),
    ]


def test_a_node_that_has_begun_nothing_takes_the_newest_plan() -> None:
    session = Session("n")
    feed(session, s.PlanArrived(plan(2)), s.PlanArrived(plan(3)))
    assert session.state == "loading"
    assert feed(session, s.WorkerReady(0, 0, "d0")) == [s.Fetch(whole(2))] and session.plan == plan(3)


def test_a_fetch_goes_on_while_it_is_listed_and_is_begun_anew_when_it_is_not() -> None:
    session = Session("n")
    feed(session, s.PlanArrived(plan(3)), s.WorkerReady(0, 0, "d0"))
    assert session.wanted == whole(2)
    assert feed(session, s.PlanArrived(plan(4))) == [] and session.wanted == whole(2)
    assert feed(session, s.PlanArrived(plan(5))) == [s.Fetch(whole(4))]
    # A version that is there is trained from, though there is a newer one by now.
    feed(session, s.PlanArrived(plan(6)), s.Fetched(whole(4).manifest.sha256))
    assert feed(session, s.Adopted(4, 0, "d4")) == [s.TrainRound(plan(5))]


def test_a_node_that_cannot_go_through_with_a_plan_declines_it_and_takes_the_newest() -> None:
    session = training()
    feed(session, s.PlanArrived(plan(2)))
    declined, fetch = feed(session, s.WorkerFailed("the loss is nan", died=False))
    assert declined == s.Decline(1, "the loss is nan") and fetch == s.Fetch(whole(1))


def test_the_end_of_the_run_and_another_run_overtake_everything() -> None:
    session = training()
    feed(session, s.PlanArrived(plan(2)), s.UpdateReady(1))
    ended = msgspec.structs.replace(plan(3), phase="finished", round=2, cohort=())
    feed(session, s.PlanArrived(ended))
    assert session.plan == ended and session.newer is None
    session = training()
    feed(session, s.PlanArrived(plan(2)), s.RunBegan())
    assert session.plan is None and session.newer is None and session.heard is None


def test_the_same_round_opened_again_is_not_a_newer_one() -> None:
    session = training()
    again = msgspec.structs.replace(plan(1), deadline_at=9.0, cohort=("m", "n"))
    assert feed(session, s.PlanArrived(again)) == [] and session.plan == again and session.newer is None
    assert feed(session, s.UpdateReady(1)) == [s.SendUpdate(1)]


@pytest.mark.parametrize("seed", range(30))
def test_any_events_keep_the_invariants(seed: int) -> None:
    chance, session, t = random.Random(seed), Session("n"), 1
    sent: list[int] = []
    for _ in range(300):
        number = max(0, t - chance.choice((0, 0, 1, 2, 5)))
        cohort = ("n",) if chance.random() < 0.8 else ()
        events: list[s.Event] = [
            s.PlanArrived(plan(t, cohort=cohort)),
            s.WorkerReady(number, 0, f"d{number}"),
            s.Fetched(session.wanted.manifest.sha256 if session.wanted else "x"),
            s.Adopted(number, 0, f"d{number}"),
            s.UpdateReady(session.plan.round if session.plan else 0),
            s.UpdateGone(session.update_round),
            s.WorkerFailed("why", died=chance.random() < 0.5),
            s.MustRest("storage", "full"),
            s.MayWork("storage"),
        ]
        event = chance.choice(events)
        before = session.state
        if isinstance(event, s.UpdateGone) and before != "sending":
            continue
        if isinstance(event, s.Adopted) and before not in ("adopting", "fetching"):
            continue
        for action in feed(session, event):
            if isinstance(action, s.SendUpdate):
                assert session.plan is not None and session.plan.takes(action.round)
                sent.append(action.round)
            if isinstance(action, s.TrainRound):
                assert session.version == action.plan.version
        t += chance.random() < 0.2
    assert obj(1).version == 1 and sent == sorted(sent)
