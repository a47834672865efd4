# SPDX-License-Identifier: Apache-2.0
"""The courier's inbox: one object and no more."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from edge_client.agent.messages import Mail
from edge_client.agent.outbox import Outbox
from edge_client.agent.transfers import Courier
from edge_client.node import Node
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.round.plan import OutcomeObject
from fedcore.transport.memory import MemoryBroker
from fedcore.wire.files import manifest_of, read_chunk


def published(folder: Path, version: int) -> tuple[OutcomeObject, Path]:
    path = folder / f"{version}"
    path.write_bytes(random.Random(version).randbytes(5000))
    return OutcomeObject(version, 0, None, "d", manifest_of(path, 1024)), path


def make_courier(folder: Path, fetched: list[str]) -> Courier:
    broker = BrokerSection(url="mqtts://x")
    node = Node(node="n", run="t", model_folder="m", memory_budget="1 GiB", folder=str(folder), data=DataSection(source="x"), broker=broker)
    transport = MemoryBroker().connect()
    mail = Mail(node, folder, transport)
    return Courier(Outbox(folder / "outbox"), folder / "inbox", transport, mail, random.Random(0), fetched.append, lambda *_: None)


def test_what_a_newer_plan_overtook_does_not_stay_on_the_disk(tmp_path: Path) -> None:
    old, old_path = published(tmp_path, 1)
    new, new_path = published(tmp_path, 2)
    fetched: list[str] = []
    courier = make_courier(tmp_path / "node", fetched)
    courier.fetch(old, 0.0)
    courier.handle(read_chunk(old_path, old.manifest.sha256, 0, 1024), 0.0)
    assert {path.suffix for path in (tmp_path / "node" / "inbox").iterdir()} == {".part"}
    courier.fetch(new, 0.0)
    assert all(path.name.startswith(new.manifest.sha256[:32]) for path in (tmp_path / "node" / "inbox").iterdir())
    for index in range(new.manifest.chunks):
        courier.handle(read_chunk(new_path, new.manifest.sha256, index, 1024), 0.0)
    assert fetched == [new.manifest.sha256]
    assert hashlib.sha256(courier.object_path(new).read_bytes()).hexdigest() == new.manifest.sha256
    assert [path.suffix for path in (tmp_path / "node" / "inbox").iterdir()] == [".bin"]
