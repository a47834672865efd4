# SPDX-License-Identifier: Apache-2.0
"""Small parts of what makes lost messages and torn files good, each where it went wrong once in a disturbed run."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from plans import make_plan

from coordinator.messages.publisher import Publisher
from coordinator.messages.reminders import Reminders
from coordinator.store.folder import RunFolder
from edge_client.agent.messages import Messages
from edge_client.agent.outbox import Outbox
from edge_client.agent.transfers import Transfers
from edge_client.node import Node
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.errors import ForgedMessage
from fedcore.round.plan import StateObject
from fedcore.transport.memory import MemoryBroker, MemoryTransport
from fedcore.wire.files import manifest_of
from fedcore.wire.messages import Grant, Topics
from fedcore.wire.post import Post


def make_messages(folder: Path, transport: MemoryTransport) -> Messages:
    section = BrokerSection(url="mqtts://broker")
    return Messages(
        Node(node="n", run="r", model_folder="m", data=DataSection(source="x.csv"), broker=section), folder, transport
    )


def test_a_node_that_has_not_heard_the_plan_is_told_again_and_less_and_less_often() -> None:
    reminders = Reminders()
    told = [second for second in range(60) if reminders.due("n", "1-train-0", "2-train-0", float(second))]
    assert told == [2, 6, 14, 30]
    assert not reminders.due("n", "2-train-0", "2-train-0", 60.0)
    # Another plan is on its way for a moment before it counts as lost.
    assert [second for second in range(5) if reminders.due("n", "2-train-0", "3-train-0", 61.0 + second)] == [2]


def test_plans_of_one_round_that_opened_twice_have_other_keys() -> None:
    keys = {make_plan(2, deadline_at=at).key for at in (1000.0, 1000.5)} | {make_plan(2, phase="finished").key}
    assert len(keys) == 3


def test_an_older_plan_that_comes_late_is_refused_without_keys_too(tmp_path: Path) -> None:
    messages, post = make_messages(tmp_path, MemoryBroker().connect()), Post("r", "", None, 9)
    old, new = post.seal(make_plan(1), 1), post.seal(make_plan(2), 2)
    messages.open("plan", new)
    with pytest.raises(ForgedMessage, match="older plan"):
        messages.open("plan", old)


@pytest.mark.parametrize("damage", ["cut short", "zeros at the end", "no seal yet"])
def test_a_torn_update_in_the_outbox_is_trained_again_and_not_offered(tmp_path: Path, damage: str) -> None:
    outbox = Outbox(tmp_path)
    path = outbox.path(3)
    path.write_bytes(random.Random(0).randbytes(10_000))
    outbox.seal(3)
    assert Outbox(tmp_path).waiting_round == 3
    if damage == "no seal yet":
        path.with_suffix(".sha256").unlink()
    with path.open("r+b") as file:
        file.truncate(9_000)
        if damage == "zeros at the end":
            file.truncate(10_000)
    assert Outbox(tmp_path).waiting_round == 0
    outbox.sent(3)
    assert [found.name for found in tmp_path.iterdir()] == ["sent"]


def test_an_update_whose_commit_was_lost_is_let_go_when_the_next_round_begins(tmp_path: Path) -> None:
    outbox, transport = Outbox(tmp_path / "outbox"), MemoryBroker().connect()
    messages = make_messages(tmp_path, transport)
    transfers = Transfers(
        outbox, tmp_path / "inbox", transport, messages, random.Random(0), lambda sha256: None, lambda *gone: None
    )
    outbox.path(1).write_bytes(b"x" * 5000)
    manifest = manifest_of(outbox.path(1), 1024)
    transfers.send(1, 1024, 0.0)
    transfers.forget_before(2)
    assert outbox.waiting_round == 0
    # A late grant asks for a file that is gone.
    transfers.handle(Grant(f"1-{manifest.sha256[:16]}", 8, b"\0"), 1.0)
    transfers.tick(100.0)


def test_an_published_state_that_cannot_go_out_does_not_hold_the_coordinator_for_each_chunk(tmp_path: Path) -> None:
    broker, folder = MemoryBroker(), RunFolder(tmp_path)
    publisher = Publisher(broker.connect(), Post("r", "", None, 1), Topics("r"), folder, 2, lambda: 1)
    path = folder.published_state(1, "whole")
    path.parent.mkdir()
    path.write_bytes(bytes(50_000))
    started = time.monotonic()
    # The transport is not connected.
    publisher.published_state(1, {(1, "whole"): StateObject(1, 0, None, "0" * 64, manifest_of(path, 1024))})
    assert time.monotonic() - started < 4.0
