# SPDX-License-Identifier: Apache-2.0
"""A week in which nothing happens, by a clock that the test turns: what an agent sends, how often it wakes its
processor, what it writes to its disk."""

from __future__ import annotations

import queue
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edge_client.agent import telemetry as telling
from edge_client.agent.agent import Agent
from edge_client.agent.resting import Surroundings
from edge_client.node import Node
from edge_client.owner import sensing
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.transport.base import Received
from fedcore.transport.memory import MemoryBroker
from fedcore.wire.codec import decode
from fedcore.wire.messages import Status, Telemetry
from tests.edge_client.agent.test_agent_rest import COOL, TOPICS, Board, Told

_HOUR_SECONDS, _WEEK_SECONDS = 3600.0, 7 * 86_400.0
# Of a message at QoS 1 beside topic and payload: the packet's own head, and its acknowledgement.
_PACKET_BYTES = 15


class Week:
    """Time passes while the agent waits, and only then."""

    def __init__(self, agent_queue: Any, ends_at: float, end: Any) -> None:
        self.now, self.waits = 0.0, 0
        self._queue, self._ends_at, self._end = agent_queue, ends_at, end

    def get(self, seconds: float) -> Any:
        if not self._queue.empty():
            return self._queue.get(0.0)
        self.now += seconds
        self.waits += 1
        if self.now >= self._ends_at:
            self._end()
        raise queue.Empty


def content(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("seconds", [_HOUR_SECONDS, pytest.param(_WEEK_SECONDS, marks=pytest.mark.slow)])
def test_idleness_costs_about_a_megabyte_a_day_no_disk_and_a_wake_up_a_second(
    seconds: float, tmp_path: Path, monkeypatch: Any
) -> None:
    broker, sent = MemoryBroker(), list[Received]()
    leader = broker.connect()
    leader.subscribe(TOPICS.up("+", "#"))
    leader.subscribe(TOPICS.status("+"))
    leader.start(lambda event: sent.append(event) if isinstance(event, Received) else None)
    folder = str(tmp_path / "node")
    node = Node(
        node="n",
        run="t",
        model_folder=str(tmp_path),
        folder=folder,
        data=DataSection(source="none.csv"),
        broker=BrokerSection(url="mqtts://b"),
    )
    weeks: list[Week] = []
    agent = Agent(
        node,
        broker.connect(),
        random.Random(0),
        partial(Told, node, tmp_path, 2**30),
        surroundings=Surroundings(Board(COOL), steady=lambda: weeks[0].now if weeks else 0.0),
    )
    weeks.append(Week(agent._queue, seconds, agent.stop))
    week, real = weeks[0], agent._queue.put
    clocked = type("Clocked", (), {"get": staticmethod(week.get), "put": staticmethod(real)})
    clocked.empty, clocked.forget = staticmethod(agent._queue.empty), staticmethod(agent._queue.forget)  # type: ignore[attr-defined]
    monkeypatch.setattr(agent, "_queue", clocked)
    # The sensors' thread waits by the machine's clock: it is counted, not run.
    monkeypatch.setattr(agent._resting, "_sensing", _Sensed())
    # Read from the machine each time: half of what a turn takes.
    monkeypatch.setattr(telling, "own_rss_bytes", lambda: 38_123_456)
    monkeypatch.setattr(telling, "own_peak_rss_bytes", lambda: 39_123_456)
    before: list[dict[str, tuple[int, int]]] = []

    def first_minute(state: str) -> None:
        if week.now > 60 and not before:
            before.append(content(tmp_path))

    agent._heartbeat = first_minute
    agent.run()

    bodies = [decode(event.payload).body for event in sent if event.payload]
    said = sum(len(event.payload) + len(event.topic) + _PACKET_BYTES for event in sent)
    days = seconds / 86_400
    wakes = week.waits / seconds + 1 / sensing._INTERVAL_SECONDS
    print(f"{said / days / 1e6:.2f} MB and {len(sent) / days:.0f} messages a day, {wakes:.2f} wake-ups a second")
    assert said < days * 2e6
    assert wakes <= 1
    assert content(tmp_path) == before[0], "nothing was written after the first minute"
    assert sum(isinstance(body, Status) for body in bodies) <= 3
    # Its server hears of it all the time all the same.
    assert sum(isinstance(body, Telemetry) for body in bodies) > seconds / 60


class _Sensed:
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def wait(self, seconds: float) -> bool:
        return True

    def latest(self) -> sensing.Sensed:
        return sensing.Sensed(COOL)
