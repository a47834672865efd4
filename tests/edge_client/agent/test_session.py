# SPDX-License-Identifier: Apache-2.0
"""The client's state machine: events in, exact actions out."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from plans import make_plan, with_artefact

import edge_client.agent.events as s
from edge_client.agent.outbox import Outbox
from edge_client.agent.session import TRANSITIONS, Session
from fedcore.errors import RunError
from fedcore.fields.manifest import Manifest
from fedcore.round.plan import ArtefactObject, Plan, StateObject


def obj(version: int, base: int | None = None, generation: int = 0, size: int = 100) -> StateObject:
    return StateObject(
        version, generation, base, f"d{version}", Manifest("o", size, f"{version}{base}{generation}", 64)
    )


def plan(
    t: int, objects: tuple[StateObject, ...] = (), *, cohort: tuple[str, ...] = ("n",), generation: int = 0
) -> Plan:
    return make_plan(t, objects=objects, cohort=cohort, generation=generation)


def feed(session: Session, *events: s.Event) -> list[s.Action]:
    out: list[s.Action] = []
    for event in events:
        out += [a for a in session.handle(event) if not isinstance(a, s.TellStatus)]
        session.check()
    return out


def test_a_whole_round_and_the_next() -> None:
    session, first = Session("n"), plan(1)
    assert feed(session, s.PlanArrived(first)) == [s.Configure(first)]
    assert feed(session, s.WorkerReady(0, 0, "d")) == [s.TrainRound(first)]
    assert feed(session, s.UpdateReady(1)) == [s.SendUpdate(1)]
    assert feed(session, s.UpdateGone(1)) == []
    difference, whole = obj(1, 0, size=10), obj(1)
    second = plan(2, (difference, whole))
    assert feed(session, s.PlanArrived(second)) == [s.Fetch(difference)]
    assert feed(session, s.Fetched(difference.manifest.sha256)) == [s.AdoptObject(difference)]
    assert feed(session, s.Adopted(1, 0, "d1")) == [s.TrainRound(second)]


@pytest.mark.parametrize("done", range(6))
def test_another_run_of_the_name_is_begun_from_wherever_the_last_one_was_left(done: int) -> None:
    session, first = Session("n", sent_round=0, update_round=0), plan(3, (obj(2),))
    steps: list[s.Event] = [
        s.PlanArrived(first),
        s.WorkerReady(2, 0, "d2"),
        s.UpdateReady(3),
        s.UpdateGone(3),
        s.PlanArrived(plan(4, (obj(3),))),
    ]
    feed(session, *steps[:done])
    assert feed(session, s.RunBegan()) == [s.EndWork()]
    assert (session.state, session.sent_round, session.plan, session.version) == ("idle", 0, None, -1)
    # What the last run's worker said, or a transfer, means nothing any more.
    assert feed(session, s.UpdateReady(3), s.UpdateGone(0)) == []
    again = plan(1)
    assert feed(session, s.PlanArrived(again), s.WorkerReady(0, 0, "d")) == [s.Configure(again), s.TrainRound(again)]


def test_a_node_that_rests_goes_on_resting_in_another_run() -> None:
    session = Session("n")
    feed(session, s.PlanArrived(plan(2)), s.MustRest("policy", "on battery"), s.RunBegan())
    assert session.state == "resting" and session.reason == "on battery"
    assert feed(session, s.PlanArrived(plan(1))) == [s.Decline(1, "on battery")]
    assert feed(session, s.MayWork("policy")) == [s.Configure(plan(1))]


def test_a_repeated_plan_changes_nothing() -> None:
    session, first = Session("n"), plan(1)
    feed(session, s.PlanArrived(first), s.WorkerReady(0, 0, "d"))
    assert feed(session, s.PlanArrived(first)) == []
    feed(session, s.UpdateReady(1))
    assert feed(session, s.PlanArrived(first)) == []
    feed(session, s.UpdateGone(1))
    assert feed(session, s.PlanArrived(first)) == [] and session.state == "idle"


def test_restart_with_an_update_on_disk_sends_it_without_training_again() -> None:
    session = Session("n", update_round=3)
    assert feed(session, s.PlanArrived(plan(3))) == [s.SendUpdate(3)]
    done = Session("n", sent_round=3)
    third = plan(3, (obj(2),))
    assert feed(done, s.PlanArrived(third), s.WorkerReady(2, 0, "d2")) == [s.Configure(third)]


def test_newer_plan_overtakes_training() -> None:
    session, second = Session("n"), plan(2, (obj(1),))
    feed(session, s.PlanArrived(plan(1)), s.WorkerReady(0, 0, "d"))
    assert feed(session, s.PlanArrived(second)) == []
    late = s.Decline(1, "late: the round was over before the update was ready")
    assert feed(session, s.UpdateReady(1)) == [late, s.Fetch(obj(1))]


def test_a_worker_that_dies_while_it_loads_is_started_again() -> None:
    session, first = Session("n"), plan(1)
    assert feed(session, s.PlanArrived(first)) == [s.Configure(first)]
    died = s.WorkerFailed("the worker ended (signal 9)", died=True)
    for _ in range(4):
        assert feed(session, died) == [s.Configure(first)]
    assert feed(session, died) == [s.Decline(1, "the worker ended (signal 9)")]


def test_dead_worker_is_tried_again_then_the_round_is_declined() -> None:
    session, first = Session("n"), plan(1)
    feed(session, s.PlanArrived(first), s.WorkerReady(0, 0, "d"))
    died = s.WorkerFailed("the worker ended (signal 9)", died=True)
    for _ in range(4):
        assert feed(session, died) == [s.Configure(first)]
        assert feed(session, s.WorkerReady(0, 0, "d")) == [s.TrainRound(first)]
    assert feed(session, died) == [s.Decline(1, "the worker ended (signal 9)")]


def test_uninvited_node_follows_without_training() -> None:
    session = Session("n")
    second = plan(2, (obj(1),), cohort=("other",))
    assert feed(session, s.PlanArrived(second), s.WorkerReady(0, 0, "d"))[1:] == [s.Fetch(obj(1))]
    feed(session, s.Fetched(obj(1).manifest.sha256))
    assert feed(session, s.Adopted(1, 0, "d1")) == [] and session.state == "idle"


def test_finished_plan_ends_with_the_last_version() -> None:
    session = Session("n")
    last = msgspec.structs.replace(plan(1, (obj(1),)), phase="finished", version=1)
    assert feed(session, s.PlanArrived(last), s.WorkerReady(1, 0, "d1")) == [s.Configure(last)]
    assert session.state == "finished"


def artefact_plan(t: int, sha256: str = "a" * 64, objects: tuple[StateObject, ...] = ()) -> tuple[Plan, ArtefactObject]:
    """A plan whose method asked for an artefact."""
    rows = ArtefactObject(Manifest("artefact.bin", 100, sha256, 64))
    return make_plan(t, objects=objects, training=with_artefact(sha256), artefact=rows), rows


def test_a_run_artefact_is_fetched_before_a_model_is_loaded_and_only_once() -> None:
    session = Session("n")
    first, rows = artefact_plan(1)
    assert feed(session, s.PlanArrived(first)) == [s.Fetch(rows)]
    assert feed(session, s.PlanArrived(first)) == [s.Fetch(rows)]
    assert feed(session, s.Fetched("b" * 64)) == []
    assert feed(session, s.Fetched(rows.manifest.sha256)) == [s.KeepArtefact(rows), s.Configure(first)]
    assert feed(session, s.WorkerReady(0, 0, "d")) == [s.TrainRound(first)]
    assert feed(session, s.UpdateReady(1), s.UpdateGone(1)) == [s.SendUpdate(1)]
    second, _ = artefact_plan(2, objects=(obj(1),))
    assert feed(session, s.PlanArrived(second)) == [s.Fetch(obj(1))]
    restarted = Session("n", artefact=rows.manifest.sha256)
    assert feed(restarted, s.PlanArrived(first)) == [s.Configure(first)]
    other, others = artefact_plan(1, "c" * 64)
    assert feed(Session("n", artefact=rows.manifest.sha256), s.PlanArrived(other)) == [s.Fetch(others)]


def test_a_damaged_artefact_is_fetched_again_until_the_round_is_declined() -> None:
    first, rows = artefact_plan(1)
    session = Session("n", artefact=rows.manifest.sha256)
    lost = s.WorkerFailed("this artefact is not the run's", died=False, not_equal=False, artefact_damaged=True)
    feed(session, s.PlanArrived(first))
    for _ in range(4):
        assert feed(session, lost) == [s.Fetch(rows)] and not session.worker_ready
        assert feed(session, s.Fetched(rows.manifest.sha256)) == [s.KeepArtefact(rows), s.Configure(first)]
    assert feed(session, lost) == [s.Decline(1, lost.reason)]
    # The next round is another chance.
    second, _ = artefact_plan(2)
    assert feed(session, s.PlanArrived(second)) == [s.Fetch(rows)]


def test_resting_stops_the_fetch_of_an_artefact_and_takes_it_up_again() -> None:
    session, (first, rows) = Session("n"), artefact_plan(1)
    feed(session, s.PlanArrived(first))
    assert feed(session, s.MustRest("policy", "hours")) == [s.LetGo(), s.Decline(1, "hours")]
    assert feed(session, s.Fetched(rows.manifest.sha256)) == []
    assert feed(session, s.MayWork("policy")) == [s.Fetch(rows)]


def test_full_disk_declines_keeps_the_worker_and_goes_on_when_there_is_room() -> None:
    session, first = Session("n"), plan(1)
    feed(session, s.PlanArrived(first), s.WorkerReady(0, 0, "d"))
    assert feed(session, s.MustRest("storage", "the disk is full")) == [s.Decline(1, "the disk is full")]
    assert session.state == "resting" and session.worker_ready
    second = plan(2, (obj(1),))
    assert feed(session, s.PlanArrived(second)) == [s.Decline(2, "the disk is full")]
    assert feed(session, s.MayWork("storage")) == [s.Fetch(obj(1))]
    assert feed(session, s.MustRest("storage", "the disk is full")) == [s.Decline(2, "the disk is full")]
    assert feed(session, s.Fetched(obj(1).manifest.sha256)) == []
    assert feed(session, s.MayWork("storage")) == [s.Fetch(obj(1))]


def test_full_disk_while_an_update_waits_sends_it_when_there_is_room() -> None:
    session = Session("n", update_round=3)
    feed(session, s.PlanArrived(plan(3)), s.MustRest("storage", "the disk is full"))
    assert feed(session, s.MayWork("storage")) == [s.SendUpdate(3)]


HOT = s.MustRest("policy", "hot")


def test_a_policy_ends_training_in_peace_and_the_round_goes_on_when_it_may() -> None:
    session, first = Session("n"), plan(1)
    feed(session, s.PlanArrived(first), s.WorkerReady(0, 0, "d"))
    assert session.state == "training"
    assert feed(session, HOT) == [s.LetGo(), s.Decline(1, "hot")]
    assert (session.state, session.reason, session.worker_ready) == ("resting", "hot", False)
    # What the worker had said before it was let go, and its end, change nothing.
    assert feed(session, s.WorkerReady(0, 0, "d"), s.WorkerFailed("the worker ended (exit code 0)", died=True)) == []
    assert session.state == "resting" and session.reason == "hot"
    assert feed(session, s.MayWork("policy")) == [s.Configure(first)] and session.reason == ""
    assert feed(session, s.WorkerReady(0, 0, "d")) == [s.TrainRound(first)]


def test_a_node_that_rests_loads_nothing_and_declines_each_plan_that_invites_it() -> None:
    session, first = Session("n"), plan(1)
    assert feed(session, HOT) == [s.LetGo()] and session.state == "resting"
    assert feed(session, s.PlanArrived(first)) == [s.Decline(1, "hot")]
    # Heard again after a reconnect: the coordinator may have missed it.
    assert feed(session, s.PlanArrived(first)) == [s.Decline(1, "hot")]
    assert feed(session, s.PlanArrived(plan(2, (obj(1),), cohort=("other",)))) == []
    third = plan(3, (obj(2),))
    assert feed(session, s.PlanArrived(third)) == [s.Decline(3, "hot")]
    assert feed(session, s.MayWork("policy")) == [s.Configure(third)]


def test_a_finished_update_is_sent_while_the_node_rests() -> None:
    session, first = Session("n"), plan(1)
    feed(session, s.PlanArrived(first), s.WorkerReady(0, 0, "d"), s.UpdateReady(1))
    assert feed(session, HOT) == [s.LetGo()] and session.state == "sending" and session.reason == "hot"
    assert feed(session, s.UpdateGone(1)) == [] and session.state == "resting" and session.reason == "hot"
    # The worker was let go as it finished: declined and sent all the same.
    late = Session("n")
    feed(late, s.PlanArrived(first), s.WorkerReady(0, 0, "d"), HOT)
    assert feed(late, s.UpdateReady(1)) == [s.SendUpdate(1)]
    assert Session("n", update_round=1).handle(HOT)[0] == s.LetGo()
    restarted = Session("n", update_round=1)
    assert feed(restarted, HOT, s.PlanArrived(first)) == [s.LetGo(), s.SendUpdate(1)]


def test_two_causes_to_rest_are_both_told_and_both_have_to_go() -> None:
    session, first = Session("n", update_round=1), plan(1)
    feed(session, s.PlanArrived(first))
    assert feed(session, s.MustRest("storage", "no room")) == [s.Decline(1, "no room")]
    assert feed(session, HOT) == [s.LetGo(), s.Decline(1, "no room; hot")]
    # An update may be sent while the policy objects, but not from a disk that takes no note of its commit.
    assert feed(session, s.MayWork("storage")) == [s.SendUpdate(1)] and session.reason == "hot"
    assert feed(session, s.MayWork("policy")) == [] and session.state == "sending"
    assert feed(session, s.MayWork("policy"), s.MayWork("storage")) == []


def test_rests_are_no_tries() -> None:
    session, first = Session("n"), plan(1)
    feed(session, s.PlanArrived(first), s.WorkerReady(0, 0, "d"))
    for _ in range(20):
        feed(session, HOT)
        assert feed(session, s.MayWork("policy"), s.WorkerReady(0, 0, "d")) == [s.Configure(first), s.TrainRound(first)]
    # A round that was given up for another reason stays given up.
    for _ in range(5):
        given_up = feed(session, s.WorkerFailed("killed", died=True), s.WorkerReady(0, 0, "d"))
    assert given_up == [s.Decline(1, "killed")]
    feed(session, HOT)
    assert (
        feed(session, s.MayWork("policy"), s.WorkerReady(0, 0, "d")) == [s.Configure(first)] and session.state == "idle"
    )


def test_a_finished_node_leaves_whatever_its_policy_says() -> None:
    session = Session("n")
    last = msgspec.structs.replace(plan(1, (obj(1),)), phase="finished", version=1)
    feed(session, s.PlanArrived(last), s.WorkerReady(1, 0, "d1"))
    assert feed(session, HOT, s.PlanArrived(last)) == [s.LetGo()] and session.state == "finished"
    # But one that has not taken the last version waits for its hour.
    waiting = Session("n")
    assert feed(waiting, HOT, s.PlanArrived(last)) == [s.LetGo()] and waiting.state == "resting"
    assert feed(waiting, s.MayWork("policy")) == [s.Configure(last)]


def test_outbox_remembers_across_restarts(tmp_path: Path) -> None:
    box = Outbox(tmp_path)
    box.path(3).write_bytes(b"u")
    box.seal(3)
    assert (Outbox(tmp_path).waiting_round, Outbox(tmp_path).sent_round) == (3, 0)
    Outbox(tmp_path).sent(3)
    assert (Outbox(tmp_path).waiting_round, Outbox(tmp_path).sent_round) == (0, 3)
    (tmp_path / "sent").write_text("torn")
    assert Outbox(tmp_path).sent_round == 0


def test_an_illegal_transition_tells_the_story() -> None:
    session = Session("n")
    feed(session, s.PlanArrived(plan(1)))
    with pytest.raises(RunError, match=r"n cannot go from loading to training; last events: \['PlanArrived'\]"):
        session._go("training")
    assert session.state == "loading"


def test_plans_of_earlier_rounds_are_let_go() -> None:
    """A plan of a model of 30 blocks takes 70 kB: all of a run's were 4 MB of an agent's 40."""

    def held() -> int:
        gc.collect()
        return sum(isinstance(found, s.PlanArrived) for found in gc.get_objects())

    before, session = held(), Session("n")
    for server_round in range(1, 5):
        feed(session, s.PlanArrived(plan(server_round)))
    assert held() == before and session.plan is not None and session.plan.round == 4


def test_a_worker_that_ended_with_its_update_is_started_again_once_that_is_sent() -> None:
    session, first = Session("n"), plan(1)
    feed(session, s.PlanArrived(first), s.WorkerReady(0, 0, "d"))
    assert feed(session, s.UpdateReady(1, worker_ended=True)) == [s.SendUpdate(1)]
    assert not session.worker_ready
    assert feed(session, s.UpdateGone(1)) == [s.Configure(first)]


def test_a_worker_that_ended_with_a_late_update_is_started_again_at_once() -> None:
    session, second = Session("n"), plan(2)
    feed(session, s.PlanArrived(plan(1)), s.WorkerReady(0, 0, "d"), s.PlanArrived(second))
    late = s.Decline(1, "late: the round was over before the update was ready")
    assert feed(session, s.UpdateReady(1, worker_ended=True)) == [late, s.Configure(second)]


def test_every_event_has_its_place_in_the_table() -> None:
    assert set(TRANSITIONS) == set(get_args(s.Event))
