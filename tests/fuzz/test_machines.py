# SPDX-License-Identifier: Apache-2.0
"""The client's session and the coordinator's rounds under any sequence of events, sensible or not: they never raise,
and what they promise holds after each event."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import with_artefact

import coordinator.rounds.events as r
import edge_client.agent.events as s
from coordinator.job import RoundSection
from coordinator.rounds.machine import RoundMachine
from edge_client.agent.session import Session
from fedcore.fields.manifest import Manifest
from fedcore.round.plan import ArtefactObject, Plan, StateObject
from tests.fuzz.samples import PLAN
from tests.fuzz.sequences import quick

rounds = st.integers(0, 4)


shas = st.sampled_from(["1" * 64, "2" * 64, "3" * 64])


manifests = st.builds(Manifest, st.just("o"), st.integers(0, 9), shas, st.just(4))


objects = st.builds(StateObject, rounds, st.integers(0, 2), st.none() | rounds, shas, manifests, st.booleans())


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    version, generation = draw(rounds), draw(st.integers(0, 2))
    training: Any = msgspec.structs.replace(PLAN.training, generation=generation)
    artefact = draw(st.none() | st.builds(ArtefactObject, manifests))
    if artefact is not None:
        training = with_artefact(artefact.manifest.sha256, training)
    present = StateObject(version, generation, None, draw(shas), draw(manifests))
    return msgspec.structs.replace(
        PLAN,
        round=draw(rounds),
        version=version,
        phase=draw(st.sampled_from(["train", "train", "finished"])),
        cohort=draw(st.sampled_from([("a", "b"), ("b",), ()])),
        objects=(present, *draw(st.lists(objects, max_size=3)))
        if draw(st.booleans())
        else tuple(draw(st.lists(objects, max_size=4))),
        training=training,
        artefact=artefact,
    )


causes = st.sampled_from(["storage", "policy"])


held = (st.integers(-1, 4), st.integers(0, 2), shas | st.just(""))


session_events = st.one_of(
    st.builds(s.PlanArrived, plans()),
    st.builds(s.WorkerReady, *held),
    st.builds(s.Fetched, shas),
    st.builds(s.Adopted, *held),
    st.builds(s.UpdateReady, rounds),
    st.builds(s.UpdateGone, rounds, st.sampled_from(["", "late"])),
    st.builds(s.WorkerFailed, st.just("killed"), st.booleans()),
    st.builds(s.WorkerFailed, st.just("another artefact"), st.just(False), artefact_damaged=st.just(True)),
    st.builds(s.MustRest, causes, st.sampled_from(["no room", "on battery"])),
    st.builds(s.MayWork, causes),
)


mostly_answers = st.integers(0, 9).flatmap(lambda choice: session_events if choice < 3 else st.just("answer"))


def next_plan(session: Session) -> Plan:
    """A sensible plan: the next round, from the version that the last one led to."""
    number = session.plan.round + 1 if session.plan is not None else 1
    sha = f"{number % 10}" * 64
    objects = (StateObject(number - 1, 0, None, sha, Manifest("o", 9, sha, 4)),) if number > 1 else ()
    training = msgspec.structs.replace(PLAN.training, generation=0)
    return msgspec.structs.replace(PLAN, round=number, version=number - 1, objects=objects, training=training)


def answer(asked: s.Action | None, session: Session) -> s.Event:
    """What comes next when all goes well: without it, senseless events never get far."""
    if session.state == "resting":
        return s.MayWork(next(iter(session.rests)))
    match asked:
        case s.Configure(_):
            return s.WorkerReady(max(0, session.version), 0, session.digest)
        case s.Fetch(obj):
            return s.Fetched(obj.manifest.sha256)
        case s.AdoptObject(obj):
            return s.Adopted(obj.version, obj.generation, obj.digest)
        case s.TrainRound(plan):
            # Ended by an agent that does not keep its worker, and only if it was at work.
            ended = plan.round % 2 == 0 and session.state in ("training", "resting")
            return s.UpdateReady(plan.round, worker_ended=ended)
        case s.SendUpdate(server_round):
            return s.UpdateGone(server_round)
        case _:
            return s.PlanArrived(next_plan(session))


@quick
@given(events=st.lists(mostly_answers, min_size=20, max_size=60), sent=rounds, waiting=rounds)
def test_session_keeps_its_invariants_whatever_happens(events: list[Any], sent: int, waiting: int) -> None:
    session, asked = Session("a", sent_round=sent, update_round=waiting), None
    for event in events:
        before = session.sent_round
        actions = session.handle(answer(asked, session) if event == "answer" else event)
        # What has no answer, and may come with something that has.
        words = s.TellStatus | s.Decline | s.KeepArtefact
        asked = next((a for a in actions if not isinstance(a, words)), None if event == "answer" else asked)
        if isinstance(asked, s.LetGo):
            asked = None
        session.check()
        assert session.sent_round >= before
        assert len([a for a in actions if not isinstance(a, words)]) <= 1
        for action in actions:
            if isinstance(action, s.SendUpdate):
                assert action.round == session.update_round > session.sent_round
            if isinstance(action, s.Configure | s.TrainRound):
                made = action.plan.artefact
                assert made is None or made.manifest.sha256 == session.artefact or session.state == "loading"
            if isinstance(action, s.TrainRound):
                assert session.worker_ready and session.plan == action.plan and "a" in action.plan.cohort


@pytest.mark.parametrize("died", [True, False])
def test_a_worker_that_fails_while_an_object_is_fetched_does_not_leave_the_node_waiting_for_ever(died: bool) -> None:
    whole = StateObject(1, 0, None, "1" * 64, Manifest("o", 9, "2" * 64, 4))
    plan = msgspec.structs.replace(PLAN, round=2, version=1, objects=(whole,))
    session = Session("a")
    for event in (s.PlanArrived(plan), s.WorkerReady(0, 0, "")):
        session.handle(event)
    assert session.state == "fetching"
    actions = session.handle(s.WorkerFailed("killed", died))
    session.check()
    if died:
        assert s.Configure(plan) in actions
        assert s.Fetch(whole) in session.handle(s.WorkerReady(0, 0, ""))
    assert s.AdoptObject(whole) in session.handle(s.Fetched("2" * 64))


nodes = st.sampled_from(["a", "b", "c"])


round_events = st.one_of(
    st.builds(r.NodeOnline, nodes),
    st.builds(r.NodeOffline, nodes, st.booleans()),
    st.builds(r.Declined, nodes, rounds),
    st.builds(r.UpdateAccepted, nodes, rounds),
    st.builds(r.RoundPublished, rounds),
    st.builds(r.DigestReported, nodes, rounds, shas),
    st.builds(r.Tick),
    *([st.builds(r.Revoked, nodes)] if hasattr(r, "Revoked") else []),
    *([st.builds(r.Arriving, nodes, rounds)] if hasattr(r, "Arriving") else []),
    st.sampled_from([r.Pause(), r.Resume(), r.Resume(), r.EndRound()]),
    st.builds(r.Exclude, nodes),
    st.builds(r.Readmit, nodes),
    st.just("publish"),
)


@quick
@given(
    events=st.lists(st.tuples(round_events, st.sampled_from([0.0, 1.0, 50.0, 500.0])), min_size=20, max_size=60),
    quorum=st.integers(1, 3),
    cohort=st.integers(0, 3),
    resumed=st.booleans(),
)
def test_round_machine_keeps_its_invariants_whatever_happens(
    events: list[Any], quorum: int, cohort: int, resumed: bool
) -> None:
    settings = RoundSection(
        rounds=3, quorum=quorum, min_nodes=3, cohort=cohort and max(cohort, quorum), deadline_seconds=100
    )
    machine, now = RoundMachine(settings, 7), 1000.0
    if resumed:
        machine.resume_open(("a", "b", "c"), {"a"}, 1050.0)
        machine.paused, machine.excluded = quorum == 1, {"c"} if quorum == 2 else set()
    published = machine.published
    for event, later in events:
        now += later
        closing = machine.round if machine.phase == "closing" else None
        before = machine.phase, machine.paused, set(machine.excluded), set(machine.accepted)
        actions = machine.handle(r.RoundPublished(machine.round) if event == "publish" else event, now)
        commanded = isinstance(event, r.Pause | r.Resume | r.EndRound | r.Exclude | r.Readmit)
        assert [isinstance(action, r.Answer) for action in actions] == [
            commanded and index == 0 for index in range(len(actions))
        ]
        if commanded:
            answer = actions[0]
            assert isinstance(answer, r.Answer) and answer.text
            # Refused: nothing follows and nothing is another.
            assert answer.done or (
                len(actions) == 1 and before[:3] == (machine.phase, machine.paused, machine.excluded)
            )
        for action in actions:
            if isinstance(action, r.CloseRound):
                assert len(action.participants) >= quorum and set(action.participants) <= set(machine.cohort)
            if isinstance(action, r.OpenRound):
                assert action.cohort and action.deadline_at > now and not machine.paused
                # An excluded node is in a round only with an update that was in before.
                assert not set(action.cohort) & machine.excluded - before[3]
        machine.check()
        assert machine.published in (published, closing)
        published = machine.published
