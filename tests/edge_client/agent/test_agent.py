# SPDX-License-Identifier: Apache-2.0
"""The agent as a real process: light, and it stays light while a large update passes through."""

from __future__ import annotations

import os
import queue
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plans import make_plan

from coordinator.messages.inbox import Inbox
from coordinator.provisioning.broker import LocalBroker, find_mosquitto
from fedcore.transport.base import Message, Received
from fedcore.transport.mqtt import MqttTransport
from fedcore.wire.codec import decode, encode
from fedcore.wire.files import manifest_of
from fedcore.wire.messages import Chunk, Envelope, Offer, Topics
from tests.patience import Patience

SIZE = 200_000_000
TOPICS = Topics("big")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LocalBroker]:
    if find_mosquitto() is None:
        pytest.skip("no mosquitto binary on this machine (apt-get install mosquitto)")
    with LocalBroker(tmp_path / "broker", ("coordinator", "n"), tls=True, run="big") as started:
        yield started


def peak_rss_bytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found.group(1)) * 1024


def test_200_mb_pass_through_an_agent_of_40_mb(broker: LocalBroker, tmp_path: Path) -> None:
    outbox = tmp_path / "node" / "outbox" / "big"
    outbox.mkdir(parents=True)
    block = random.Random(0).randbytes(1_000_000)
    with (outbox / "1.bin").open("wb") as file:
        for index in range(SIZE // len(block)):
            file.write(index.to_bytes(4, "little") + block[4:])
    (outbox / "1.sha256").write_text(manifest_of(outbox / "1.bin", 65_536).sha256)
    # Unsigned, because what stands in for the coordinator signs nothing; encrypted, because that costs the agent
    # memory.
    connection, _, _ = broker.sections("n").partition("[trust]")
    (tmp_path / "model").mkdir()
    node_file = tmp_path / "node.toml"
    node_file.write_text(
        f'node = "n"\nrun = "big"\nmodel_folder = "{tmp_path / "model"}"\nmemory_budget = "1 GiB"\nfolder = "{tmp_path / "node"}"\n'
        f'[data]\nsource = "none.csv"\n{connection}'
    )
    events: queue.Queue = queue.Queue()
    transport = MqttTransport(broker.settings("coordinator", "coordinator"), random.Random(0))
    transport.subscribe(TOPICS.up("+", "#"))
    transport.start(events.put)
    transport.wait_connected(60)
    arrived: list[Path] = []

    def accept(node: str, offer: Offer, path: Path) -> str:
        arrived.append(path)
        return ""

    def reply(node: str, body: object) -> None:
        envelope = Envelope(run="big", round=1, node=node, body=body)  # type: ignore[arg-type]
        transport.publish(Message(TOPICS.down(node, "x"), encode(envelope)))

    inbox = Inbox(accept, reply)  # type: ignore[arg-type]
    plan = make_plan(deadline_at=time.time() + 600)
    transport.publish(Message(TOPICS.plan, encode(Envelope(run="big", round=1, node="", body=plan)), retain=True))
    agent = subprocess.Popen(
        [sys.executable, "-c", "from fedcore.command import main; main()", "client", "run", str(node_file)],
        stdout=subprocess.DEVNULL,
    )
    try:
        patience = Patience(lambda: [agent])
        while (outbox / "1.bin").exists():
            patience.check()
            try:
                event = events.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(event, Received):
                body = decode(event.payload).body
                if isinstance(body, Offer):
                    inbox.offer("n", body, tmp_path / "in" / "1.bin", 0.0)
                elif isinstance(body, Chunk):
                    inbox.chunk("n", body, 0.0)
        assert arrived and arrived[0].stat().st_size == SIZE
        peak = peak_rss_bytes(agent.pid)
        maps = Path(f"/proc/{agent.pid}/maps").read_text()
        assert not re.search(r"libtorch|_multiarray_umath|libopenblas|tokenizers", maps), (
            "the agent loaded a heavy library"
        )
        assert peak <= 40_000_000, f"the agent's peak was {peak / 1e6:.1f} MB"
    finally:
        agent.terminate()
        agent.wait(120)
        transport.stop()
    assert os.path.exists(outbox / "sent")
