# SPDX-License-Identifier: Apache-2.0
"""The client's state machine where its replica is not the run's: another digest, or a later version."""

from __future__ import annotations

import edge_client.agent.events as s
from edge_client.agent.session import Session
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
