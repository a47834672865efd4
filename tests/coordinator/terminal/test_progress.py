# SPDX-License-Identifier: Apache-2.0
"""What a coordinator tells its log: every event once, in the order in which it happened."""

from __future__ import annotations

import dataclasses

import msgspec
from made_runs import row

from coordinator.store.view import EventView, NodeView, RunView
from coordinator.terminal.forecast import forecast
from coordinator.terminal.story import Story


def view(**values: object) -> RunView:
    found = RunView("r", "fedkrso", 3, security="encrypted, signed messages")
    for key, value in values.items():
        setattr(found, key, value)
    return found


def told(story: Story, seen: RunView) -> list[tuple[str, str]]:
    return [(line.event, str(line)) for line in story.lines(seen)]


def test_a_round_is_told_from_its_opening_to_its_accuracy() -> None:
    story = Story()
    seen = view(phase="open", round=1, cohort=("a", "b"), round_opened_at=10.0, deadline_at=70.0)
    seen.nodes = {name: NodeView(name, online=True) for name in "ab"}
    lines = story.lines(seen)
    assert [line.event for line in lines] == ["security", "node_online", "node_online", "round_opened"]
    assert (lines[-1].round, lines[-1].numbers) == (1, {"invited": 2, "deadline_seconds": 60.0})
    seen.accepted = ("a",)
    assert told(story, seen) == [("update_accepted", "round 1: update of a")]
    # The update that closes the round is in no view of it.
    first = row(1, None, "ab")
    seen.phase, seen.round, seen.accepted, seen.rows = "closing", 1, (), [first]
    assert told(story, seen) == []
    seen.phase, seen.round, seen.round_opened_at = "open", 2, 90.0
    lines = story.lines(seen)
    assert [line.event for line in lines] == ["update_accepted", "round_published", "round_opened"]
    assert str(lines[0]) == "round 1: update of b" and lines[0].numbers == {"accepted": 2}
    assert lines[1].numbers == {
        "train_loss": 1.0,
        "updates": 2,
        "stale": 0,
        "uplink_bytes": 1_500_000,
        "downlink_bytes": 3_000_000,
        "seconds": 11.0,
    }
    seen.rows = [msgspec.structs.replace(first, accuracy=0.5, loss=1.25)]
    lines = story.lines(seen)
    assert [line.event for line in lines] == ["round_evaluated"]
    assert (lines[0].numbers["accuracy"], lines[0].numbers["loss"]) == (0.5, 1.25)
    assert told(story, seen) == []


def test_how_old_the_updates_of_a_buffered_round_are_is_told_with_it() -> None:
    story, seen = Story(), view(phase="open", round=2, cohort=("a", "b"), round_opened_at=10.0, buffer_size=2)
    seen.rows = [msgspec.structs.replace(row(1, 0.5, "ab"), stale={"b": (3, 0.5)})]
    (line,) = [line for line in story.lines(seen) if line.event == "round_evaluated"]
    assert str(line).endswith(", 1 of 2 updates up to 3 behind") and line.numbers["stale"] == 1


def test_a_round_that_opens_again_is_told_again() -> None:
    story, seen = Story(), view(phase="open", round=1, cohort=("a",), round_opened_at=10.0)
    story.lines(seen)
    seen.round_opened_at = 80.0
    assert told(story, seen) == [("round_opened", "round 1 is open for a")]


def test_nodes_that_come_and_go_are_told_each_time() -> None:
    story, seen = Story(), view()
    seen.nodes["a"] = NodeView("a", online=True)
    assert ("node_online", "node a is online") in told(story, seen)
    seen.nodes["a"].online = False
    assert told(story, seen) == [("node_offline", "node a is offline")]
    seen.nodes["a"].online = True
    assert told(story, seen) == [("node_online", "node a is online")]


def test_a_node_that_leaves_a_finished_run_is_done() -> None:
    story, seen = Story(), view(phase="finished")
    seen.nodes["a"] = NodeView("a", online=True, state="finished")
    story.lines(seen)
    seen.nodes["a"].online = False
    assert told(story, seen) == [("node_offline", "node a is done")]


def test_what_is_left_is_a_forecast_and_no_deadline() -> None:
    seen = view(phase="open", round=1, cohort=("a", "b"), round_opened_at=100.0, deadline_at=3700.0)
    assert forecast(seen, 110.0) is None
    seen.nodes = {"a": NodeView("a", step=30, steps=40), "b": NodeView("b", step=10, steps=40)}
    # The slower one has done a quarter in ten seconds.
    found = forecast(seen, 110.0)
    assert found is not None and found.round_seconds == 30.0
    assert found.run_seconds == 30.0 + 40.0 * (seen.total_rounds - 1)
    seen.rows = [
        msgspec.structs.replace(row(n, 0.5, "a"), seconds=seconds)
        for n, seconds in enumerate((99.0, 20.0, 30.0, 25.0), 1)
    ]
    seen.round, seen.total_rounds = 5, 7
    found = forecast(seen, 110.0)
    assert found is not None and found.round_seconds == 15.0 and found.run_seconds == 65.0
    late = forecast(seen, 500.0)
    assert late is not None and late.round_seconds == 0.0
    assert forecast(dataclasses.replace(seen, phase="closing"), 110.0) is None


def test_numbers_of_nodes_at_work_are_no_events() -> None:
    story, seen = Story(), view()
    seen.nodes["a"] = NodeView("a", online=True)
    story.lines(seen)
    for step in range(5):
        seen.nodes["a"].step, seen.nodes["a"].last_seen_at = step, float(step)
        assert story.lines(seen) == []


def test_events_are_told_once_also_when_older_ones_leave_the_view() -> None:
    story, seen = Story(), view()
    story.lines(seen)
    events = [EventView(float(n), "refused" if n % 2 else "command", "a", 1, f"reason {n}") for n in range(120)]
    texts = []
    for end in range(1, 121, 3):
        seen.events = events[max(0, end - 50) : end]
        texts += story.lines(seen)
    seen.events = events[70:]
    texts += story.lines(seen)
    assert [str(line) for line in texts] == [event.line() for event in events]
    assert [line.level for line in texts[:2]] == ["info", "warning"] and texts[7].at == 7.0


def test_pausing_and_insecurity_are_told() -> None:
    story, seen = Story(), view(security="INSECURE: no encryption, unsigned messages")
    assert [line.level for line in story.lines(seen)] == ["warning"]
    seen.paused = True
    assert [event for event, _ in told(story, seen)] == ["paused"]
    seen.paused = False
    assert [event for event, _ in told(story, seen)] == ["resumed"]


def test_a_large_cohort_is_a_short_line() -> None:
    names = tuple(f"node-{n:03}" for n in range(300))
    (line,) = (
        line for line in Story().lines(view(phase="open", round=1, cohort=names)) if line.event == "round_opened"
    )
    assert line.endswith("node-011 and 288 more") and len(line) < 200 and line.numbers["invited"] == 300


def test_a_view_is_not_changed() -> None:
    seen = view(phase="open", round=1, cohort=("a",), accepted=("a",), rows=[row(1, 0.5, "a")])
    before = dataclasses.replace(seen)
    Story().lines(seen)
    assert seen == before


def test_what_there_is_to_know_of_the_model_is_told_once() -> None:
    story, seen = Story(), view()
    story.lines(seen)
    seen.notes = ("a head is there already: it is trained on",)
    assert told(story, seen) == [("model_note", seen.notes[0])]
    seen.notes = (*seen.notes, "measures on 9 held-out examples, 2 of them cut as too long")
    seen.phase = "open"
    assert [line for line in told(story, seen) if line[0] == "model_note"] == [("model_note", seen.notes[1])]
    assert told(story, seen) == []


def test_metrics_are_told_with_the_accuracy() -> None:
    measured = msgspec.structs.replace(row(1, 0.5, "a"), metrics={"json_equality": 0.75, "rouge_l": 0.8})
    ((_, words),) = told(Story(), view(security="", rows=[measured]))
    assert words.startswith("round 1: accuracy 0.500, json_equality 0.750, rouge_l 0.800, train loss")
