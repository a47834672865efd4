# SPDX-License-Identifier: Apache-2.0
"""A node of an older protocol in a fleet: it is named with the side to upgrade, hears so itself, and the others' round
goes on."""

from __future__ import annotations

from pathlib import Path

import msgpack

from coordinator.job import SafetySection
from fedcore.fields.formats import PROTOCOL
from fedcore.transport.base import Message, Received
from fedcore.transport.memory import MemoryBroker
from fedcore.wire.identity import SIGNATURE_BYTES
from tests.coordinator.messages.one_round import HONEST, TOPICS, Run
from tests.golden.older import OLDER, older


def test_an_older_node_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    run, answers = Run(tmp_path), list[bytes]()
    run.watch = lambda broker: _hear(broker, answers)
    said = [Message(TOPICS.status("older"), older("status"), retain=True)]
    said += [Message(TOPICS.up("older", "x"), older(name)) for name in ("offer", "declined")]
    run.replayed = said * 20
    assert set(run.go(HONEST, SafetySection()).values()) == {""}
    assert run.view.rows[0].participants == ("good-1", "good-2")
    words = f"node speaks protocol {OLDER}, coordinator {PROTOCOL}: upgrade fedkrso on the node"
    assert run.said("version") == {"older": words}
    assert run.view.nodes["older"].trouble == words and not run.view.nodes["older"].online
    assert len([kind for _, kind, node, _ in run.ledger.events() if node == "older"]) <= 3, "once, not each time"
    run.ledger.close()
    # What it read was a map in msgpack behind a signature, and it looked at the version first.
    assert answers and msgpack.unpackb(answers[0][SIGNATURE_BYTES:])["version"] == PROTOCOL


def _hear(broker: MemoryBroker, answers: list[bytes]) -> None:
    transport = broker.connect()
    transport.subscribe(TOPICS.down("older", "#"))
    transport.start(lambda event: answers.append(event.payload) if isinstance(event, Received) else None)
