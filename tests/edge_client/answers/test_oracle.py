# SPDX-License-Identifier: Apache-2.0
"""Devices and the large model behind them over a real broker with certificates, access rules and signatures: what
crosses, what is refused, and answers when the oracle or the broker is killed."""

from __future__ import annotations

import json
import os
import queue
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cluster import needs_mosquitto
from workshop import program

from coordinator.provisioning.broker import LocalBroker
from edge_client.answers.asker import Asker, Given
from edge_client.node import Node
from edge_client.owner.asking import AskSection
from fedcore.config.sections import DataSection, TrustSection
from fedcore.transport.base import Message, Received
from fedcore.transport.mqtt import MqttTransport
from fedcore.wire.answers import Answered, AnswerEnvelope, AnswerTopics, Ask, Resolved, opened, sealed
from fedcore.wire.identity import SigningKey
from tests.edge_client.worker.answering.two_parts import BLOCKS, TEXTS, two_parts
from tests.patience import until

pytestmark = pytest.mark.usefixtures("quick_workers")
TOPICS = AnswerTopics("r")
NAMES = ("coordinator", "kitchen", "garden")
READY = "answering for run r"
PAIRS = [(text, None) for text in TEXTS]


class Site:
    """A broker, an oracle that is a process, and devices in this one.

    Args:
        folder: Its own.
        tls: Certificates and access rules; else passwords, and whoever has one may write and read everything.
    """

    def __init__(self, folder: Path, *, tls: bool) -> None:
        self.folder = folder
        self.small, self.large = two_parts("bert", folder)
        self.broker = LocalBroker(folder / "broker", NAMES, kind="mosquitto", tls=tls, run="r")
        self.keys = {} if tls else self._made_keys()
        lines = ['run = "r"', f"[model]\nfolder = {json.dumps(str(self.large))}"]
        lines += ['[task]\nkind = "text-classification"\nlabels = ["off", "on"]', self.broker.sections("coordinator")]
        if not tls:
            enrolled = folder / "enrolled.json"
            hexes = {name: key.public.hex for name, key in self.keys.items()}
            nodes = {name: key for name, key in hexes.items() if name != "coordinator"}
            enrolled.write_text(json.dumps({"coordinator": hexes["coordinator"], "nodes": nodes}))
            lines += [f'[trust]\nsigning_key = "{folder}/coordinator.key"\nenrolled = "{enrolled}"']
        (folder / "job.toml").write_text("\n".join(lines))
        self.log = folder / "oracle.txt"
        self.oracle: subprocess.Popen[bytes] | None = None

    def _made_keys(self) -> dict[str, SigningKey]:
        found = {}
        for number, name in enumerate(NAMES):
            seed = bytes([number + 1] * 32)
            path = self.folder / f"{name}.key"
            path.touch(mode=0o600)
            path.write_text(seed.hex())
            found[name] = SigningKey(seed)
        return found

    def listener(self, topic: str) -> tuple[MqttTransport, queue.Queue[Received]]:
        """Somebody else at the broker, who hears a topic from now on."""
        heard: queue.Queue[Received] = queue.Queue()
        transport = MqttTransport(self.broker.settings(topic.rpartition("/")[2], "garden"), random.Random(0))
        transport.subscribe(topic)
        transport.start(lambda event: heard.put(event) if isinstance(event, Received) else None)
        transport.wait_connected(60)
        return transport, heard

    def begin(self) -> None:
        words = (
            "coordinator",
            "oracle",
            self.folder / "job.toml",
            "--model",
            self.large,
            "--blocks",
            BLOCKS,
            "--threads",
            1,
        )
        before = self.said().count(READY)
        with self.log.open("ab") as log:
            self.oracle = subprocess.Popen(
                program(*words, "--runs", self.folder / "runs"), stdout=log, stderr=log, env=dict(os.environ)
            )
        until(lambda: self.said().count(READY) > before, [self.oracle], said=self.said)

    def kill(self) -> None:
        assert self.oracle is not None
        self.oracle.kill()
        self.oracle.wait()

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def node(self, name: str, **changes: Any) -> Node:
        ask = AskSection(
            **{
                "model": str(self.small),
                "deadline_seconds": 60.0,
                "least_similarity": 0.9999,
                "learn_every": len(TEXTS),
                **changes,
            }
        )
        data = DataSection(source="none")
        broker, trust = self.broker.section(name), self.broker.trust(name)
        if self.keys:
            hexed = self.keys["coordinator"].public.hex
            trust = TrustSection(signing_key=str(self.folder / f"{name}.key"), coordinator_key=hexed)
        folder = str(self.folder / name)
        return Node(
            node=name, run="r", model_folder="none", data=data, broker=broker, trust=trust, folder=folder, ask=ask
        )

    def close(self) -> None:
        if self.oracle is not None:
            self.kill()
        self.broker.stop()


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    needs_mosquitto()
    made = Site(tmp_path, tls=request.param == "certificates")
    yield made
    made.close()


def labels(given: list[Given]) -> list[tuple[float, ...]]:
    return [one.said.scores for one in given]


def alike(some: list[Given], others: list[Given]) -> bool:
    """Whether they say the same, up to which texts were in one batch."""
    return labels(some) == [pytest.approx(one, abs=1e-5) for one in labels(others)]


def by(given: list[Given]) -> set[str]:
    return {one.said.by for one in given}


@pytest.mark.parametrize("site", ["certificates"], indirect=True)
def test_devices_ask_reuse_learn_and_answer_by_themselves_when_the_oracle_is_gone(site: Site) -> None:
    site.begin()
    with Asker(site.node("kitchen", threshold=1.0)) as alone:
        small = alone.ask(PAIRS)
    assert by(small) == {"device"} and {one.sent_bytes for one in small} == {0}
    with Asker(site.node("kitchen")) as kitchen, Asker(site.node("garden")) as garden:
        for device in (kitchen, garden):
            device.wait(120, rounds=1)
        # The published threshold is 0: everything is asked.
        asked = kitchen.ask(PAIRS)
        assert by(asked) == {"coordinator"}, site.said()
        assert all(one.received_bytes > 64 for one in asked)
        assert not alike(small, asked)
        # What the oracle said to the kitchen, the garden has heard too.
        until(lambda: garden.wait(0.1) or len(garden.session._known) == len(TEXTS))
        reused = garden.ask(PAIRS)
        assert by(reused) == {"peer"} and labels(reused) == labels(asked)
        # The garden has to ask itself before it can say what it would choose.
        fresh = garden.ask([("word0 word0 word0 left left left", None)])
        assert by(fresh) == {"coordinator"}
        for device in (kitchen, garden):
            device.wait(60, rounds=2)
            assert device.session.round == 2
        assert "round 2 of thresholds: " in site.said()
        site.kill()
        # Nobody is there: the small model's answers, marked.
        gone = _with(kitchen, threshold=0.0, deadline_seconds=0.3).ask(PAIRS[:2])
        assert [one.said.why for one in gone] == ["the coordinator did not answer in time"] * 2
        assert alike(gone, small[:2]) and by(gone) == {"device"}
        site.begin()
        again = _with(kitchen, deadline_seconds=60.0).ask(PAIRS[:1])
        assert alike(again, asked[:1]) and by(again) == {"coordinator"}
        assert kitchen.session.round == 2, "thresholds outlive a kill"
        site.broker.kill()
        late = "the coordinator did not answer in time"
        until(lambda: _with(kitchen, deadline_seconds=0.2).ask(PAIRS[:1])[0].said.why != late)
        (cut,) = kitchen.ask(PAIRS[:1])
        assert cut.said.why == "there is no link to the broker" and alike([cut], small[:1])


def _with(device: Asker, **changes: Any) -> Asker:
    """The same device with other settings; peers' answers are left out of it."""
    section = msgspec.structs.replace(device.session._section, least_similarity=2.0, **changes)
    device.session._section = section
    return device


@pytest.mark.slow
@pytest.mark.parametrize("site", ["passwords"], indirect=True)
def test_what_is_forged_or_played_again_changes_nothing(site: Site) -> None:
    site.begin()
    watch, seen = site.listener(TOPICS.of("+", "up"))
    liar, answers = site.listener(TOPICS.of("kitchen", "down"))
    with Asker(site.node("kitchen", threshold=0.0, learn_every=0)) as kitchen:
        kitchen.wait(120, rounds=1)
        asked = kitchen.ask(PAIRS)
        assert by(asked) == {"coordinator"}, site.said()
        # What a device says that it sent is what came through the broker: hidden states, and little else.
        crossed = [seen.get(timeout=60).payload for _ in asked]
        assert [one.sent_bytes for one in asked] == [len(payload) for payload in crossed]
        told = [answers.get(timeout=60).payload for _ in asked]
        assert [one.received_bytes for one in asked] == [len(payload) for payload in told]
        for payload in crossed:
            ask = opened(payload, site.keys["kitchen"].public, "r", "kitchen").body
            assert isinstance(ask, Ask) and len(ask.numbers) == 32 * ask.tokens
            assert 0 < len(payload) - len(ask.numbers) - len(ask.scales) < 400
            assert not any(word.encode() in payload for text in TEXTS for word in text.split())
        whole = crossed[-1]
        envelope = opened(whole, None, "r", "kitchen")
        later = msgspec.structs.replace(envelope, sequence=envelope.sequence + 1)
        forged = sealed(later, SigningKey(bytes(32)))
        for payload in (whole, forged, sealed(later, None), whole[:80]):
            assert liar.publish(Message(TOPICS.of("kitchen", "up"), payload))
        # In the name of the coordinator: to this device, and to its cluster.
        lie = AnswerEnvelope(answers=1, run="r", node="kitchen", sequence=2**60, body=Answered("0" * 32, (1.0, 0.0)))
        shared = msgspec.structs.replace(lie, node="", body=Resolved("ab" * 32, b"\x01", (1.0, 0.0)))
        for topic, lied in ((TOPICS.of("kitchen", "down"), lie), (TOPICS.resolved(0), shared)):
            payload = sealed(lied, SigningKey(bytes(32)))
            assert liar.publish(Message(topic, payload))
        until(lambda: seen.qsize() == 4, said=site.said)
        (after,) = kitchen.ask([("word1 word1 right", None)])
        assert after.said.by == "coordinator"
        assert kitchen.session.refused == {"the signature is not its sender's": 2}
        # Of what came since, the lie is one; the other is the answer to the question that was asked.
        since = [answers.get(timeout=60).payload for _ in range(2)]
        key = site.keys["coordinator"].public
        assert opened(since[1], key, "r", "kitchen").body.item == after.said.asked and answers.empty()
        watch.stop()
        liar.stop()
    assert site.said().count("refused a message of kitchen: the signature is not its sender's") == 3
