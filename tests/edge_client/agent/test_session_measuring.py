# SPDX-License-Identifier: Apache-2.0
"""The client's state machine where plans ask to measure: before a round is trained, and once at the run's end."""

from __future__ import annotations

from typing import Any

import msgspec
from plans import make_plan

import edge_client.agent.events as s
from edge_client.agent.session import Session
from fedcore.round.measurement import Measurement, NodeEvaluation, Sum
from fedcore.round.plan import Plan
from tests.edge_client.agent.test_session import feed, obj

ASKED = NodeEvaluation()
FOUND = Measurement(version=0, examples=8, sums={"loss": Sum(0, 8), "accuracy": Sum(0, 8)})


def asking(t: int, **changes: Any) -> Plan:
    return make_plan(t, evaluation=ASKED, **changes)


def test_a_state_is_measured_before_it_is_trained_from_and_the_update_carries_it() -> None:
    session, first = Session("n"), asking(1)
    feed(session, s.PlanArrived(first))
    assert feed(session, s.WorkerReady(0, 0, "d")) == [s.MeasureState(first)] and session.state == "measuring"
    assert feed(session, s.StateMeasured(0, FOUND)) == [s.TrainRound(first, FOUND)]
    # The round opens again: what was measured is known.
    feed(session, s.UpdateReady(1), s.UpdateGone(1))
    feed(session, s.PlanArrived(asking(2, objects=(obj(1),))), s.Fetched(obj(1).manifest.sha256))
    assert feed(session, s.Adopted(1, 0, "d1")) == [s.MeasureState(asking(2, objects=(obj(1),)))]


def test_a_node_without_held_out_rows_trains_without_numbers() -> None:
    session, first = Session("n"), asking(1)
    feed(session, s.PlanArrived(first), s.WorkerReady(0, 0, "d"))
    assert feed(session, s.StateMeasured(0, None)) == [s.TrainRound(first, None)]


def test_a_round_whose_state_is_not_due_is_trained_at_once() -> None:
    session, first = Session("n"), make_plan(1, evaluation=NodeEvaluation(due=False))
    feed(session, s.PlanArrived(first))
    assert feed(session, s.WorkerReady(0, 0, "d")) == [s.TrainRound(first, None)]


def test_who_is_not_invited_measures_only_the_last_state() -> None:
    session, first = Session("n"), asking(1, cohort=("m",))
    assert feed(session, s.PlanArrived(first), s.WorkerReady(0, 0, "d")) == [s.Configure(first)]
    assert session.state == "idle"
    last = asking(1, phase="finished", cohort=(), version=1, objects=(obj(1),))
    feed(session, s.PlanArrived(last), s.Fetched(obj(1).manifest.sha256))
    assert feed(session, s.Adopted(1, 0, "d1")) == [s.MeasureState(last)]
    found = msgspec.structs.replace(FOUND, version=1)
    assert feed(session, s.StateMeasured(1, found)) == []
    assert session.state == "finished" and session.measurement == found


def test_a_worker_that_dies_while_it_measures_is_started_again_and_a_node_that_cannot_measure_ends_the_run() -> None:
    session, first = Session("n"), asking(1)
    feed(session, s.PlanArrived(first), s.WorkerReady(0, 0, "d"))
    assert feed(session, s.WorkerFailed("killed", died=True)) == [s.Configure(first)]
    assert feed(session, s.WorkerReady(0, 0, "d")) == [s.MeasureState(first)]
    assert feed(session, s.WorkerFailed("a metric failed", died=False)) == [s.Decline(1, "a metric failed")]
    ended = Session("n")
    feed(ended, s.PlanArrived(asking(1, phase="finished", cohort=(), version=0)), s.WorkerReady(0, 0, "d"))
    assert feed(ended, s.WorkerFailed("a metric failed", died=False)) == [] and ended.state == "finished"
    assert ended.measurement is None


def test_measuring_and_training_of_a_round_count_as_one_try() -> None:
    session, first = Session("n"), asking(1)
    feed(session, s.PlanArrived(first), s.WorkerReady(0, 0, "d"), s.StateMeasured(0, FOUND))
    assert session.tries == 1
    for _ in range(3):
        assert feed(session, s.WorkerFailed("killed", died=True)) == [s.Configure(first)]
        assert feed(session, s.WorkerReady(0, 0, "d")) == [s.TrainRound(first, FOUND)]
    assert feed(session, s.WorkerFailed("killed", died=True)) == [s.Configure(first)]
    assert feed(session, s.WorkerReady(0, 0, "d")) == [s.TrainRound(first, FOUND)]
    assert feed(session, s.WorkerFailed("killed", died=True)) == [s.Decline(1, "killed")]


def test_an_owner_who_wants_the_device_ends_measuring_and_it_is_no_failure() -> None:
    session, first = Session("n"), asking(1)
    feed(session, s.PlanArrived(first), s.WorkerReady(0, 0, "d"))
    assert feed(session, s.MustRest("policy", "on battery")) == [s.LetGo(), s.Decline(1, "on battery")]
    assert session.tries == 0
