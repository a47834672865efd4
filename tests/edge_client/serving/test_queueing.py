# SPDX-License-Identifier: Apache-2.0
"""Who is answered next: in turn, with a bound, and whatever happens to worker, clients and training."""

from __future__ import annotations

import random

import pytest

from edge_client.serving import queueing as q
from edge_client.serving.refusals import Refusal

TRAINS = Refusal(503, "trains", retry_after_seconds=30)
GONE = Refusal(503, "gone")


def ready(most_waiting: int = 2) -> q.AnswerQueue:
    queue = q.AnswerQueue(most_waiting)
    queue.handle(q.Asked(1))
    queue.handle(q.RoomGranted())
    assert queue.handle(q.Loaded()) == [q.Give(1)]
    queue.check()
    return queue


def told(actions: list[q.Action]) -> list[tuple[int, int]]:
    return [(action.answer, action.refusal.status) for action in actions if isinstance(action, q.Refuse)]


def test_the_first_request_starts_a_worker() -> None:
    queue = q.AnswerQueue(2)
    assert queue.handle(q.Asked(1)) == [q.AskRoom()]
    assert queue.handle(q.RoomGranted()) == [q.Start()]
    assert queue.handle(q.Asked(2)) == []
    assert queue.handle(q.Loaded()) == [q.Give(1)]
    assert queue.handle(q.Done()) == [q.Give(2)]
    assert queue.handle(q.Done()) == []
    assert queue.state == "ready"


def test_one_more_than_may_wait_is_refused() -> None:
    queue = ready()
    assert queue.handle(q.Asked(2)) == queue.handle(q.Asked(3)) == []
    assert told(queue.handle(q.Asked(4))) == [(4, 429)]
    assert queue.handle(q.Done()) == [q.Give(2)]
    assert queue.handle(q.Asked(5)) == []


def test_without_a_place_to_wait_one_is_answered_all_the_same() -> None:
    queue = q.AnswerQueue(0)
    assert queue.handle(q.Asked(1)) == [q.AskRoom()]
    assert told(queue.handle(q.Asked(2))) == [(2, 429)]


def test_a_client_that_leaves_frees_its_place() -> None:
    queue = ready()
    queue.handle(q.Asked(2))
    queue.handle(q.Asked(3))
    assert queue.handle(q.Left(2)) == []
    assert queue.handle(q.Left(1)) == [q.StopAnswer(1)]
    assert queue.handle(q.Done()) == [q.Give(3)]


def test_a_newer_state_is_taken_up_between_answers() -> None:
    queue = ready()
    queue.handle(q.Asked(2))
    assert queue.handle(q.NewState()) == []
    assert queue.handle(q.Done()) == [q.Load()]
    assert queue.handle(q.Loaded()) == [q.Give(2)]
    queue.handle(q.Done())
    assert queue.handle(q.NewState()) == [q.Load()]


def test_what_changes_while_it_is_read_is_read_again_some_times() -> None:
    queue = q.AnswerQueue(2)
    queue.handle(q.Asked(1))
    queue.handle(q.RoomGranted())
    for _ in range(3):
        assert queue.handle(q.LoadFailed(GONE, changed=True)) == [q.Load()]
    assert queue.handle(q.LoadFailed(GONE, changed=True)) == [q.EndWorker(), q.Refuse(1, GONE)]
    assert queue.handle(q.Asked(2)) == [q.AskRoom()]


def test_a_worker_that_dies_takes_one_answer_with_it() -> None:
    queue = ready()
    queue.handle(q.Asked(2))
    assert queue.handle(q.Died(GONE)) == [q.EndWorker(), q.Refuse(1, GONE), q.AskRoom()]
    queue.handle(q.RoomGranted())
    assert queue.handle(q.Loaded()) == [q.Give(2)]


def test_one_that_dies_while_it_loads_is_not_started_again_for_those_who_wait() -> None:
    queue = q.AnswerQueue(2)
    queue.handle(q.Asked(1))
    queue.handle(q.RoomGranted())
    assert queue.handle(q.Died(GONE)) == [q.EndWorker(), q.Refuse(1, GONE)]


def test_training_gets_the_memory_after_the_answer_that_is_being_given() -> None:
    queue = ready()
    queue.handle(q.Asked(2))
    assert queue.handle(q.MakeRoom(TRAINS)) == [q.Refuse(2, TRAINS)]
    assert told(queue.handle(q.Asked(3))) == [(3, 503)]
    assert queue.handle(q.Done()) == [q.EndWorker()]
    assert queue.handle(q.RoomFree()) == []
    assert queue.handle(q.Asked(4)) == [q.AskRoom()]


def test_an_answer_that_takes_too_long_is_broken_off_for_training() -> None:
    queue = ready()
    queue.handle(q.MakeRoom(TRAINS))
    assert queue.handle(q.Overdue()) == [q.Refuse(1, TRAINS), q.EndWorker()]
    assert queue.handle(q.Overdue()) == []


def test_training_that_came_first_is_waited_for_by_nobody() -> None:
    queue = q.AnswerQueue(2)
    queue.handle(q.Asked(1))
    assert queue.handle(q.RoomRefused(TRAINS)) == [q.Refuse(1, TRAINS)]
    assert queue.state == "away"


@pytest.mark.parametrize("seed", range(200))
def test_whatever_comes_everybody_is_answered_or_told_why(seed: int) -> None:
    chance = random.Random(seed)
    queue, asked, over = q.AnswerQueue(chance.randrange(4)), set[int](), set[int]()
    for last in range(1, 121):
        events: list[q.Event] = [q.RoomFree(), q.MakeRoom(TRAINS)] if chance.random() < 0.2 else []
        events += [q.Overdue(), q.NewState()]
        events.append(q.Asked(last))
        if asked - over:
            events.append(q.Left(chance.choice(sorted(asked - over))))
        if queue.state == "waiting":
            events += [q.RoomGranted(), q.RoomRefused(TRAINS)]
        elif queue.state == "loading":
            events += [q.Loaded(), q.LoadFailed(GONE, changed=chance.random() < 0.5), q.Died(GONE)]
        elif queue.state == "ready":
            events += [q.Died(GONE), *([q.Done()] * 3 if queue.current is not None else [])]
        event = chance.choice(events)
        if isinstance(event, q.Asked):
            asked.add(event.answer)
        elif isinstance(event, q.Left):
            over.add(event.answer)
        current = queue.current
        if isinstance(event, q.Done) and current is not None:
            over.add(current)
        actions = queue.handle(event)
        queue.check()
        refused = {action.answer for action in actions if isinstance(action, q.Refuse)}
        over |= refused
        assert asked - over <= {*queue.waiting, queue.current}
