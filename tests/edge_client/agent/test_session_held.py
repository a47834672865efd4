# SPDX-License-Identifier: Apache-2.0
"""The client's state machine where its replica is not the run's: another digest, or a later version."""

from __future__ import annotations

import msgspec
from plans import head_before

import edge_client.agent.events as s
from edge_client.agent.session import Session
from fedcore.weights.schema import ModelSchema, TensorSpec
from tests.edge_client.agent.test_session import feed, obj, plan


def test_a_replica_with_another_digest_never_trains_but_takes_the_whole_state() -> None:
    session = Session("n")
    difference, whole = obj(2, 1, size=10), obj(2)
    third = plan(3, (difference, whole))
    # It says version 2, but what it holds is not the run's version 2.
    assert feed(session, s.PlanArrived(third), s.WorkerReady(2, 0, "torn"))[1:] == [s.Fetch(whole)]
    assert "resynchronising" in session.reason
    feed(session, s.Fetched(whole.manifest.sha256))
    assert feed(session, s.Adopted(2, 0, "d2")) == [s.TrainRound(third)]
    assert session.reason == ""


def test_a_replica_that_is_ahead_of_the_run_is_loaded_again_and_trains() -> None:
    """A coordinator that was put back to a copy of before, or whose earlier run of the name this node was in."""
    session = Session("n")
    first = plan(1)
    assert feed(session, s.PlanArrived(first), s.WorkerReady(2, 0, "of a later round")) == [s.Configure(first)] * 2
    assert "ahead of the run's 0" in session.reason
    assert feed(session, s.WorkerReady(0, 0, "d")) == [s.TrainRound(first)]
    # The same while its worker is at work, and once only so often: a worker that cannot let go of it is none.
    session = Session("n")
    third, again = plan(3, (obj(2),)), plan(2, (obj(1),))
    feed(session, s.PlanArrived(third), s.WorkerReady(2, 0, "d2"))
    assert feed(session, s.PlanArrived(again)) == []
    assert feed(session, s.UpdateReady(3))[-1] == s.Configure(again)
    for _ in range(3):
        assert feed(session, s.WorkerReady(2, 0, "d2")) == [s.Configure(again)]
    assert feed(session, s.WorkerReady(2, 0, "d2")) == [s.Decline(2, "version 2 is ahead of the run's 1")]


def test_a_worker_that_has_no_room_for_sums_is_loaded_anew_for_a_head_s_round() -> None:
    schema = ModelSchema((), (TensorSpec("score.weight", (2, 8), in_checkpoint=False),))
    session, own = Session("n"), msgspec.structs.replace(plan(1), model_schema=schema)
    head = msgspec.structs.replace(own, round=2, version=1, objects=(obj(1),), training=head_before(own.training))
    feed(session, s.PlanArrived(own), s.WorkerReady(0, 0, "d"), s.UpdateReady(1), s.UpdateGone(1))
    assert feed(session, s.PlanArrived(head)) == [s.Configure(head)]
    assert feed(session, s.WorkerReady(1, 0, "d1")) == [s.TrainRound(head)]
    # What gathers has room for the rounds that follow, and then for the next head.
    feed(session, s.UpdateReady(2), s.UpdateGone(2))
    third = msgspec.structs.replace(own, round=3, version=2, objects=(obj(2),))
    assert feed(session, s.PlanArrived(third)) == [s.Fetch(obj(2))]
    feed(session, s.Fetched(obj(2).manifest.sha256), s.Adopted(2, 0, "d2"), s.UpdateReady(3), s.UpdateGone(3))
    fourth = msgspec.structs.replace(head, round=4, version=3, objects=(obj(3),))
    assert feed(session, s.PlanArrived(fourth)) == [s.Fetch(obj(3))]
    # Who is not invited, or only says how it ends, needs no room.
    for other in (msgspec.structs.replace(head, cohort=("m",)), msgspec.structs.replace(head, phase="finished")):
        idle = Session("n")
        feed(idle, s.PlanArrived(own), s.WorkerReady(0, 0, "d"), s.UpdateReady(1), s.UpdateGone(1))
        assert feed(idle, s.PlanArrived(other)) == [s.Fetch(obj(1))]
