# SPDX-License-Identifier: Apache-2.0
"""How often a node speaks, and what it says of what it hears."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from plans import make_plan

from edge_client.agent.hearing import Hearing
from edge_client.agent.messages import Messages
from edge_client.agent.telemetry import Pace
from edge_client.node import Node
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.fields.formats import PROTOCOL, SPOKEN
from fedcore.transport.base import Denied
from fedcore.transport.memory import MemoryBroker
from fedcore.wire.codec import encode
from fedcore.wire.messages import Commit, Envelope, Telemetry, Topics, Welcome
from fedcore.wire.post import Post
from tests.golden.older import OLDER, older

A, B, TOPICS = "a" * 32, "b" * 32, Topics("r")
NUMBERS = Telemetry(
    state="idle",
    step=0,
    steps=0,
    loss=None,
    agent_rss_bytes=33_000_000,
    agent_peak_rss_bytes=34_000_000,
    worker_bytes=None,
    peak_bytes=34_000_000,
    budget_bytes=2**30,
    uplink_bytes=10_000,
    downlink_bytes=20_000,
    plan="3-train-1800000000000",
    digest="d" * 64,
)


def test_an_idle_node_is_quiet_and_tells_a_change_at_once_and_again() -> None:
    pace, day = Pace(random.Random(0)), range(86_400)
    said = [second for second in day if pace.due(second, NUMBERS, working=False)]
    assert said[:5] == sorted(said[:5]) and said[0] == 0 and said[4] < 30
    assert max(later - one for one, later in zip(said, said[1:], strict=False)) <= 58
    size = len(encode(Envelope(run="reviews", run_id=A, round=3, node="kitchen-orin", body=NUMBERS)))
    assert len(said) * size < 2_000_000, "bytes a day"
    changed = msgspec.structs.replace(NUMBERS, version=4)
    again = [second for second in range(86_400, 86_410) if pace.due(second, changed, working=False)]
    assert again[0] == 86_400 and len(again) >= 3, "any message may be lost"
    # Numbers that move by themselves are no change.
    moved = msgspec.structs.replace(changed, agent_rss_bytes=1, available_bytes=5, uplink_bytes=11_000)
    assert not pace.due(86_410.1, moved, working=False)
    pace.soon()
    assert pace.due(86_410.2, moved, working=False)


def test_a_node_that_works_tells_each_second() -> None:
    pace = Pace(random.Random(0))
    assert all(pace.due(second, NUMBERS, working=True) for second in range(60))


def test_a_thousand_that_work_tell_a_hundred_times_a_second_together_and_a_change_at_once() -> None:
    paces = [Pace(random.Random(number)) for number in range(1000)]
    told = [sum(pace.due(second, NUMBERS, working=True, invited=1000) for pace in paces) for second in range(60)]
    assert told[0] == 1000 and 80 < sum(told[1:]) / 59 < 110
    # Spread over time after the first word, which is of a change.
    assert max(told[20:]) < 200
    changed = msgspec.structs.replace(NUMBERS, version=4)
    assert paces[0].due(60.1, changed, working=True, invited=1000)
    assert not paces[0].due(61.2, changed, working=True, invited=1000)


def hearing(folder: Path) -> tuple[Hearing, Messages, list[str]]:
    data, broker = DataSection(source="x.csv"), BrokerSection(url="mqtts://broker")
    node = Node(node="n", run="r", model_folder="m", data=data, broker=broker, folder=str(folder))
    messages, said = Messages(node, folder, MemoryBroker().connect()), list[str]()
    return Hearing(messages, "n", lambda line: said.append(str(line))), messages, said


def test_a_node_says_whether_the_broker_will_be_asked_again(tmp_path: Path) -> None:
    own, _, said = hearing(tmp_path)
    own.deaf(Denied("t/+", "Not authorized", lasting=True))
    own.deaf(Denied("t/+", "Unspecified error", lasting=False))
    assert said == [
        "the broker does not let us read t/+: Not authorized (see its access rules)",
        "the broker does not let us read t/+: Unspecified error (asked again)",
    ]


def test_a_run_is_entered_by_its_first_plan_or_by_an_answer_and_told(tmp_path: Path) -> None:
    own, messages, said = hearing(tmp_path)
    first = own.take(TOPICS.plan, Post("r", "", None, 1, A).seal(make_plan(1), 1), 0.0)
    assert first is not None and first.other_run
    word = messages.membership.word
    welcome = Post("r", "", None, 1, B).seal(Welcome(formats=dict(SPOKEN), number=41), to="n", correlation=word)
    answer = own.take(TOPICS.down("n", "welcome"), welcome, 1.0)
    assert answer is not None and answer.other_run and messages.membership.run_id == B
    assert said == [
        "in run aaaaaaaaaaaa",
        "another run of this name (bbbbbbbbbbbb): what was done in the last one is left",
    ]
    # It had lost its disk, and counts on from what the coordinator has heard of it.
    assert (tmp_path / "start").read_text() == "42"


def test_two_coordinators_are_suspected(tmp_path: Path) -> None:
    own, messages, said = hearing(tmp_path)
    for at, run_id in enumerate((A, B, A, B)):
        body, word = Welcome(formats=dict(SPOKEN)), messages.membership.word
        said_again = Post("r", "", None, 1, run_id).seal(body, to="n", correlation=word)
        own.take(TOPICS.down("n", "welcome"), said_again, float(at))
    assert "do two coordinators lead one? stop all but one" in said[-1]


def test_a_coordinator_of_another_version_is_named_with_the_side_to_upgrade(tmp_path: Path) -> None:
    own, messages, said = hearing(tmp_path)
    older = encode(Envelope(run="r", round=1, node="", body=make_plan(1), version=PROTOCOL - 1))
    assert own.take(TOPICS.plan, older, 0.0) is None
    words = f"node speaks protocol {PROTOCOL}, coordinator {PROTOCOL - 1}: upgrade fedkrso on the coordinator"
    assert own.refused == words and words in said[0]
    body = Welcome(formats={**SPOKEN, "update": SPOKEN["update"] + 1})
    newer = Post("r", "", None, 1, A).seal(body, to="n", correlation=messages.membership.word)
    assert own.take(TOPICS.down("n", "welcome"), newer, 0.0) is None
    assert "upgrade fedkrso on the node" in own.refused and messages.membership.run_id == ""


@pytest.mark.parametrize(("name", "topic"), [("plan", TOPICS.plan), ("welcome", TOPICS.down("n", "welcome"))])
def test_what_an_older_coordinator_wrote_is_refused_in_one_line(tmp_path: Path, name: str, topic: str) -> None:
    own, messages, said = hearing(tmp_path)
    assert [own.take(topic, older(name), float(second)) for second in range(5)] == [None] * 5
    words = f"node speaks protocol {PROTOCOL}, coordinator {OLDER}: upgrade fedkrso on the coordinator"
    assert own.refused == words and messages.membership.run_id == ""
    assert len(said) == 1 and words in said[0]


def test_the_same_refusal_is_a_line_a_minute(tmp_path: Path) -> None:
    own, _, said = hearing(tmp_path)
    own.take(TOPICS.plan, Post("r", "", None, 5, A).seal(make_plan(2), 2), 0.0)
    old = Post("r", "", None, 4, A).seal(make_plan(1), 1)
    for second in range(100):
        own.take(TOPICS.plan, old, float(second))
        own.take(TOPICS.down("n", "commit"), Post("r", "", None, 1, B).seal(Commit("1-x"), to="n"), float(second))
    refused = [line for line in said if line.startswith("refused")]
    assert len(refused) == 4 and "an older plan, played again" in refused[0]
    assert own.refused == "a message of another run of this name"
    assert own.take(TOPICS.plan, b"", 0.0) is None
