# SPDX-License-Identifier: Apache-2.0
"""The queue of runs: whatever happens in whatever order, slots are never shared, nothing is begun twice, and what is
kept is what is."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.server.keeping import Kept
from coordinator.server.queueing import Action, Begin, End, Ending, Entry, Keep, Kill, Queue, pause_seconds
from fedcore.errors import RunError

DIED = Ending("died", "it died", 0)


def submitted(queue: Queue, *names: str, now: float = 0.0) -> list[Action]:
    return [action for name in names for action in queue.submit(name, "0" * 32, "ann", now)]


def states(queue: Queue) -> dict[str, str]:
    return {name: entry.state for name, entry in queue.entries.items()}


def test_as_many_as_there_are_slots_run_and_the_others_follow_in_their_order() -> None:
    queue = Queue(2, 5)
    begun = [action.entry.run for action in submitted(queue, "a", "b", "c", "d") if isinstance(action, Begin)]
    assert begun == ["a", "b"] and states(queue) == {"a": "running", "b": "running", "c": "queued", "d": "queued"}
    actions = queue.ended("a", Ending("finished", "", 3), 1.0)
    assert [type(action) for action in actions] == [Keep, Keep, Begin]
    assert states(queue)["a"] == "finished" and states(queue)["c"] == "running"
    assert queue.entries["c"].slot == 1 and queue.entries["a"].slot == 0


def test_what_dies_is_begun_again_after_growing_pauses_and_has_failed_with_its_last_line() -> None:
    queue, now = Queue(1, 4), 0.0
    submitted(queue, "a", "b")
    pauses = []
    for _ in range(3):
        queue.ended("a", DIED, now)
        entry = queue.entries["a"]
        assert entry.state == "waiting" and entry.slot == 1, (
            "it keeps its slot: what it had began is not lost to others"
        )
        assert queue.tick(entry.retry_at - 0.1) == []
        pauses.append(entry.retry_at - now)
        now = entry.retry_at
        assert [type(action) for action in queue.tick(now)] == [Keep, Begin]
    queue.ended("a", Ending("died", "the disk is full", 0), now)
    assert pauses == [2.0, 4.0, 8.0] and queue.entries["a"].state == "failed"
    assert queue.entries["a"].words == "the disk is full" and states(queue)["b"] == "running"


def test_who_made_a_round_meanwhile_is_tried_anew() -> None:
    queue = Queue(1, 2)
    submitted(queue, "a")
    for rounds in range(1, 9):
        queue.ended("a", Ending("died", "", rounds), 0.0)
        assert states(queue)["a"] == "waiting" and queue.entries["a"].tries == 1
        queue.tick(1000.0)
    queue.ended("a", Ending("died", "", 8), 0.0)
    assert states(queue)["a"] == "failed"


def test_what_somebody_interrupts_is_begun_again_however_often() -> None:
    queue = Queue(1, 2)
    submitted(queue, "a")
    for number in range(20):
        queue.ended("a", Ending("interrupted", "stopped", 0), 10.0 * number)
        assert states(queue)["a"] == "waiting" and queue.entries["a"].tries == 0
        assert [type(action) for action in queue.tick(10.0 * number + 2.0)] == [Keep, Begin]


def test_what_no_other_try_would_mend_has_failed_at_once() -> None:
    queue = Queue(1, 5)
    submitted(queue, "a")
    queue.ended("a", Ending("hopeless", "job.toml: no such folder", 0), 0.0)
    assert states(queue)["a"] == "failed"


def test_stopping_asks_and_then_kills() -> None:
    queue = Queue(1, 5)
    submitted(queue, "a", "b")
    assert [type(action) for action in queue.stop("a", "bob", 1.0)] == [Keep, End]
    assert not queue.entries["a"].announced and queue.stop("a", "bob", 2.0) == []
    assert queue.tick(30.0) == [] and [type(action) for action in queue.tick(31.0)] == [Keep, Kill]
    assert queue.tick(32.0) == []
    queue.ended("a", DIED, 33.0)
    assert queue.entries["a"].words == "stopped by bob" and states(queue) == {"a": "stopped", "b": "running"}
    queue.ended("b", DIED, 34.0)
    queue.stop("b", "bob", 35.0)
    assert states(queue)["b"] == "stopped"
    with pytest.raises(RunError, match="run 'b' is stopped already"):
        queue.stop("b", "bob", 36.0)
    with pytest.raises(RunError, match="no run 'z' was submitted"):
        queue.stop("z", "bob", 36.0)
    with pytest.raises(RunError, match="submitted already, and is stopped"):
        queue.submit("a", "1" * 32, "ann", 37.0)


def test_a_run_that_ends_by_itself_while_it_is_stopped_is_finished() -> None:
    queue = Queue(1, 5)
    submitted(queue, "a")
    queue.stop("a", "bob", 1.0)
    queue.ended("a", Ending("finished", "", 6), 2.0)
    assert states(queue)["a"] == "finished"


def test_a_clock_that_was_set_back_keeps_nobody_waiting() -> None:
    queue = Queue(1, 5)
    submitted(queue, "a", now=1e9)
    queue.ended("a", DIED, 1e9)
    assert [type(action) for action in queue.tick(1000.0)] == [Keep, Begin]


def test_pauses_grow_to_a_longest() -> None:
    pauses = [pause_seconds(tries) for tries in range(1, 100)]
    assert pauses == sorted(pauses) and pauses[-1] == 300.0


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "stop", "finished", "died", "interrupted", "hopeless", "tick", "restart"]),
        st.integers(0, 6),
        st.floats(0, 400),
    ),
    max_size=60,
)


@settings(max_examples=80, deadline=None)
@given(EVENTS, st.integers(1, 3))
def test_no_order_of_events_shares_a_slot_or_begins_a_run_twice(
    events: list[tuple[str, int, float]], slots: int
) -> None:
    queue, now = Queue(slots, 3), 0.0
    kept: dict[str, Entry] = {}
    alive: set[str] = set()
    for what, index, seconds in events:
        name, now = f"run-{index}", now + seconds
        actions: list[Action] = []
        with contextlib.suppress(RunError):
            match what:
                case "submit":
                    actions = queue.submit(name, f"{index:032}", "ann", now)
                case "stop":
                    actions = queue.stop(name, "bob", now)
                case "finished" | "died" | "interrupted" | "hopeless" if name in alive:
                    alive.discard(name)
                    actions = queue.ended(name, Ending(what, "", index), now)  # type: ignore[arg-type]
                case "tick":
                    actions = queue.tick(now)
                case "restart":
                    queue = Queue(slots, 3, kept.values())
        for action in actions:
            if isinstance(action, Keep):
                kept[action.entry.run] = action.entry
            elif isinstance(action, Begin):
                assert action.entry.run not in alive, "begun twice"
                assert kept[action.entry.run] == action.entry, "kept before it is begun"
                alive.add(action.entry.run)
            else:
                assert action.entry.run in alive
        assert kept == queue.entries
        queue.check()
        assert {entry.run for entry in queue.entries.values() if entry.state in ("running", "stopping")} == alive


def test_entries_and_places_are_there_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "queue.sqlite")
    queue = Queue(1, 5)
    for action in submitted(queue, "b", "a"):
        if isinstance(action, Keep):
            kept.keep(action.entry)
    kept.put_places({"kitchen": "a", "attic": "b"}.items())
    kept.put_places({"kitchen": "b"}.items())
    kept.put_fact("start", 7)
    kept.close()
    again = Kept(tmp_path / "queue.sqlite")
    assert again.entries() == [queue.entries["b"], queue.entries["a"]]
    assert again.places() == {"kitchen": "b"} and again.fact("start", 0) == 7 and again.fact("other", 3) == 3
    again.close()


def test_a_queue_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "queue.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(RunError, match=r"queue\.sqlite: the queue cannot be read"):
        Kept(tmp_path / "queue.sqlite")
