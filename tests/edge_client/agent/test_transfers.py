# SPDX-License-Identifier: Apache-2.0
"""The transfers's inbox: one object and no more."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from edge_client.agent.messages import Messages
from edge_client.agent.outbox import Outbox
from edge_client.agent.transfers import Transfers
from edge_client.node import Node
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.round.plan import StateObject
from fedcore.transport.memory import MemoryBroker
from fedcore.wire.files import manifest_of, read_chunk


def published(folder: Path, version: int) -> tuple[StateObject, Path]:
    path = folder / f"{version}"
    path.write_bytes(random.Random(version).randbytes(5000))
    return StateObject(version, 0, None, "d", manifest_of(path, 1024)), path


def make_transfers(folder: Path, fetched: list[str]) -> Transfers:
    broker = BrokerSection(url="mqtts://x")
    node = Node(
        node="n",
        run="t",
        model_folder="m",
        memory_budget="1 GiB",
        folder=str(folder),
        data=DataSection(source="x"),
        broker=broker,
    )
    transport = MemoryBroker().connect()
    messages = Messages(node, folder, transport)
    return Transfers(
        Outbox(folder / "outbox"),
        folder / "inbox",
        transport,
        messages,
        random.Random(0),
        fetched.append,
        lambda *_: None,
    )


def test_what_a_newer_plan_overtook_does_not_stay_on_the_disk(tmp_path: Path) -> None:
    old, old_path = published(tmp_path, 1)
    new, new_path = published(tmp_path, 2)
    fetched: list[str] = []
    transfers = make_transfers(tmp_path / "node", fetched)
    transfers.fetch(old, 0.0)
    transfers.handle(read_chunk(old_path, old.manifest.sha256, 0, 1024), 0.0)
    assert {path.suffix for path in (tmp_path / "node" / "inbox").iterdir()} == {".part"}
    transfers.fetch(new, 0.0)
    assert all(path.name.startswith(new.manifest.sha256[:32]) for path in (tmp_path / "node" / "inbox").iterdir())
    for index in range(new.manifest.chunks):
        transfers.handle(read_chunk(new_path, new.manifest.sha256, index, 1024), 0.0)
    assert fetched == [new.manifest.sha256]
    assert hashlib.sha256(transfers.object_path(new).read_bytes()).hexdigest() == new.manifest.sha256
    assert [path.suffix for path in (tmp_path / "node" / "inbox").iterdir()] == [".bin"]
