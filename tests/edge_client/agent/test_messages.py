# SPDX-License-Identifier: Apache-2.0
"""What a node hears: the coordinator of its run, nothing older than the last plan, also after a restart."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest
from plans import make_plan

from edge_client.agent.messages import Messages
from edge_client.node import Node
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.errors import ForgedMessage
from fedcore.transport.base import Received
from fedcore.transport.memory import MemoryBroker
from fedcore.wire.codec import decode
from fedcore.wire.identity import SigningKey
from fedcore.wire.messages import Commit, Status
from fedcore.wire.post import Post

COORDINATOR, OWN = SigningKey(b"c" * 32), SigningKey(b"n" * 32)


def node(folder: Path) -> Node:
    data, broker = DataSection(source="x.csv"), BrokerSection(url="mqtts://broker")
    return Node(node="n", run="r", model_folder="m", data=data, broker=broker, folder=str(folder))


def messages(folder: Path, broker: MemoryBroker | None = None, **keys: Any) -> Messages:
    keys = keys or {"key": OWN, "coordinator": COORDINATOR.public}
    return Messages(node(folder), folder, (broker or MemoryBroker()).connect(), **keys)


def test_messages_of_the_coordinator_for_this_node_are_heard(tmp_path: Path) -> None:
    own, post = messages(tmp_path), Post("r", "", COORDINATOR, 9)
    assert own.open("t", post.seal(Commit("1-x"), 1, to="n")) == Commit("1-x")
    assert own.security == "TLS, signed messages"


@pytest.mark.parametrize(
    "payload",
    [
        Post("r", "", OWN, 9).seal(Commit("1-x"), 1, to="n"),
        Post("r", "", None, 9).seal(Commit("1-x"), 1, to="n"),
        Post("q", "", COORDINATOR, 9).seal(Commit("1-x"), 1, to="n"),
        Post("r", "", COORDINATOR, 9).seal(Commit("1-x"), 1, to="other"),
    ],
    ids=["another's key", "unsigned", "another run", "for another node"],
)
def test_forged_and_foreign_messages_are_refused(tmp_path: Path, payload: bytes) -> None:
    with pytest.raises(ForgedMessage):
        messages(tmp_path).open("t", payload)


def test_an_older_plan_played_again_is_refused_also_after_a_restart(tmp_path: Path) -> None:
    own, post = messages(tmp_path), Post("r", "", COORDINATOR, 9)
    old, new = post.seal(make_plan(1), 1), post.seal(make_plan(2), 2)
    own.open("plan", old)
    own.open("plan", new)
    own.open("plan", new)
    for later in (own, messages(tmp_path)):
        with pytest.raises(ForgedMessage, match="played again"):
            later.open("plan", old)
        assert later.open("plan", new) == make_plan(2)


def test_what_goes_out_is_signed_and_numbered_above_every_earlier_start(tmp_path: Path) -> None:
    broker, events = MemoryBroker(), queue.Queue[Any]()
    listener = broker.connect()
    listener.start(events.put)
    listener.subscribe("fedkrso/2/r/node/n/status")
    seen = []
    for _ in range(2):
        transport = broker.connect()
        transport.start(lambda event: None)
        own = Messages(node(tmp_path), tmp_path, transport, OWN, COORDINATOR.public)
        own.tell(Status(online=True))
        seen.append(decode(own.will().payload, OWN.public).sequence)
        while not events.empty():
            if isinstance(event := events.get(), Received):
                seen.append(decode(event.payload, OWN.public).sequence)
    assert len(set(seen)) == 4 and max(seen[:2]) < min(seen[2:])


def test_without_keys_the_status_says_so(tmp_path: Path) -> None:
    assert messages(tmp_path, key=None, coordinator=None).security == "TLS, unsigned messages"
