# SPDX-License-Identifier: Apache-2.0
"""History stays small and honest however long a run lasts; the feed hands on at most once a second."""

from __future__ import annotations

import math

from coordinator.dashboard.feed import Feed
from coordinator.dashboard.history import COLUMNS, History, Track
from coordinator.store.view import NodeView, RunView
from fedcore.device.readings import Readings


def test_a_day_of_seconds_fits_and_its_one_peak_is_still_there() -> None:
    track, seconds = Track(), 24 * 3600
    for second in range(seconds):
        memory = 900.0 if second == 40_000 else 500.0 + second % 7
        available = 3.0 if second == 50_000 else 70.0
        track.add(1e9 + second, {"agent_bytes": memory, "available_bytes": available, "step": second, "loss": None})
    found = track.plain()
    assert {len(column) for column in found.values()} == {len(found["at"])} and 150 <= len(found["at"]) <= 300
    assert set(found) == {"at", *COLUMNS}
    assert (
        max(v for v in found["agent_bytes"] if v is not None) == 900
        and min(v for v in found["available_bytes"] if v is not None) == 3
    )
    times = [at for at in found["at"] if at is not None]
    assert times[0] == 1e9 and times == sorted(times) and times[-1] > 1e9 + seconds - 2 * track.interval_seconds
    # The peak is where it was.
    peak = found["agent_bytes"].index(900)
    assert abs(times[peak] - 1e9 - 40_000) <= track.interval_seconds
    assert found["step"][-1] == seconds - 1 and found["loss"] == [None] * len(times)


def test_columns_stay_of_equal_length_whatever_the_number_of_points() -> None:
    for number in range(40):
        track = Track(points=8, interval_seconds=1.0)
        for second in range(number):
            track.add(float(second), {"step": second} if second % 3 else {})
        found = track.plain()
        assert {len(column) for column in found.values()} == {len(found["at"])} and len(found["at"]) <= 8
        assert not number or found["step"][-1] in (None, number - 1, number - 2)


def test_values_within_an_interval_become_one_point_that_keeps_the_worst() -> None:
    track = Track(interval_seconds=10.0)
    track.add(0.0, {"agent_bytes": 5, "available_bytes": 9, "loss": 2.5})
    track.add(3.0, {"agent_bytes": 7, "available_bytes": None})
    track.add(6.0, {"agent_bytes": 6, "available_bytes": 4, "loss": 1.5})
    track.add(10.0, {"agent_bytes": 1})
    found = track.plain()
    assert (found["at"], found["agent_bytes"], found["available_bytes"], found["loss"]) == (
        [0, 10],
        [7, 1],
        [4, None],
        [1.5, None],
    )


def test_a_node_is_sampled_when_it_was_heard_and_leaves_a_gap_when_it_goes() -> None:
    node = NodeView(
        "a",
        online=True,
        last_seen_at=1.0,
        agent_rss_bytes=10,
        worker_bytes=100,
        worker_anonymous_bytes=70,
        budget_bytes=500,
    )
    node.readings = Readings(
        temperatures_celsius={"cpu": 40.0, "gpu": 50.5}, power_watts=7.5, memory_available_bytes=2000
    )
    view, history = RunView("r", "m", 3, nodes={"a": node}, written_at=10.0), History()
    history.add(view)
    view.written_at = 12.0
    history.add(view)
    assert history.plain("a")["at"] == [10]
    node.last_seen_at, node.worker_anonymous_bytes, node.readings = 2.0, None, None
    history.add(view)
    node.online, view.written_at = False, 20.0
    history.add(view)
    history.add(view)
    found = history.plain("a")
    assert found["at"] == [10, 12, 20]
    assert found["worker_anonymous_bytes"] == [70, 100, None] and found["worker_file_bytes"] == [30, None, None]
    assert found["hottest_celsius"] == [50.5, None, None] and found["power_watts"] == [7.5, None, None]
    assert found["available_bytes"] == [2000, None, None] and found["budget_bytes"] == [500, 500, None]
    assert history.plain("stranger")["at"] == []


def test_names_from_the_wire_do_not_take_memory_without_end() -> None:
    history = History()
    names = [f"n{number}" for number in range(3000)]
    history.add(
        RunView(
            "r", "m", 1, nodes={name: NodeView(name, online=True, last_seen_at=1.0) for name in names}, written_at=1.0
        )
    )
    assert sum(bool(history.plain(name)["at"]) for name in names) == 2000


def test_hundreds_of_changes_a_second_are_handed_on_once_a_second_and_the_last_one_at_the_end() -> None:
    now, got = [100.0], list[RunView]()
    feed = Feed(lambda data: got.append(RunView.decoded(data)), clock=lambda: 5000.0 + now[0], monotonic=lambda: now[0])
    view = RunView("r", "m", 3)
    for number in range(1000):
        now[0] = 100.0 + number / 200
        view.round = number
        feed.observe(view)
        assert feed.turned_at == now[0]
    assert [v.round for v in got] == [0, 200, 400, 600, 800] and got[1].written_at == 5101.0
    # Another phase is told at once: what follows may take a while.
    view.phase, now[0] = "closing", now[0] + 0.2
    feed.observe(view)
    assert got[-1].phase == "closing"
    # What was held back is handed on at the end.
    view.round = 1000
    feed.observe(view)
    assert got[-1].round == 999
    feed.close()
    assert got[-1].round == 1000 and len(got) == 7
    # Nothing else changed, nothing is handed on: the time alone is no news.
    for _ in range(5):
        now[0] += 2.0
        feed.observe(view)
    assert len(got) == 7 and view.written_at == 0.0
    assert math.isclose(feed.turned_at, now[0])
