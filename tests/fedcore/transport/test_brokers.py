# SPDX-License-Identifier: Apache-2.0
"""Addresses, and brokers that lack something: said by name. Real mosquittos, each with one line changed."""

from __future__ import annotations

import json
import queue
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from cluster import needs_mosquitto, needs_nats
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from coordinator.provisioning.broker import LocalBroker, free_port
from coordinator.provisioning.nats import configuration, find_nats
from fedcore.config.broker import mqtt_settings
from fedcore.config.sections import BrokerSection
from fedcore.errors import BrokerRefused, ConfigError
from fedcore.transport.address import MqttSettings
from fedcore.transport.base import Disconnected, Limits, Message, Received
from fedcore.transport.client import client_id, short_client_id
from fedcore.transport.lacking import lacking
from fedcore.transport.mqtt import MqttTransport


@pytest.mark.parametrize(
    ("url", "address", "tls", "path"),
    [
        ("mqtt://h", ("h", 1883), False, ""),
        ("mqtts://h:9", ("h", 9), True, ""),
        ("ws://h", ("h", 80), False, "/mqtt"),
        ("wss://h/a/b", ("h", 443), True, "/a/b"),
    ],
)
def test_addresses(url: str, address: tuple[str, int], tls: bool, path: str) -> None:
    settings = MqttSettings(url, "c")
    assert settings.address == address and settings.tls == tls and settings.websockets == bool(path)
    assert not path or settings.path == path


@pytest.mark.parametrize("url", ["http://h", "mqtt://", "mqtts://h:99999", "mqtts://h/x", "h:1883", "mqtt://[h"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match=r"broker\.url"):
        BrokerSection(url=url, insecure=True)


@pytest.mark.parametrize("url", ["mqtts://me:secret@h", "ws://secret@h", "mqtt://a:secret@h:x"])
def test_a_password_in_an_address_is_refused_and_not_printed(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        BrokerSection(url=url)
    assert "secret" not in error.value.one_line() and "broker.password_file" in error.value.one_line()


def test_websockets_without_encryption_have_to_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="not encrypted"):
        BrokerSection(url="ws://h/mqtt")
    BrokerSection(url="wss://h/mqtt")


def test_a_password_that_others_can_read_is_refused_like_a_key(tmp_path: Path) -> None:
    path = tmp_path / "word"
    path.write_text("secret\n")
    section = BrokerSection(url="mqtts://h", username="u", password_file=str(path))
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read this password .chmod 600"):
        mqtt_settings(section, "c")
    path.chmod(0o600)
    assert mqtt_settings(section, "c").password == "secret"


def test_client_ids_fit() -> None:
    longest = client_id("r" * 64, "n" * 64)
    assert len(longest) == 128 and longest != client_id("r" * 64, "n" * 63 + "m")
    assert client_id("voice", "kitchen") == "fedkrso-voice-kitchen"
    short = short_client_id(longest)
    assert len(short) == 23 and short.isalnum() and short != short_client_id(longest[:-1])


def test_each_thing_that_a_broker_lacks_has_a_line() -> None:
    poor = Limits(16_384, "MQTT 5", max_qos=0, retain=False, wildcards=False, session_seconds=3600)
    assert len(lacking(poor)) == 5 and lacking(Limits(2_000_000, "MQTT 5", session_seconds=86_400)) == []


class Client:
    """A client, and what happens to it."""

    def __init__(self, settings: MqttSettings) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.transport = MqttTransport(settings, random.Random(0))
        self.settings = settings

    def start(self, *filters: str, seconds: float = 120.0) -> Client:
        for topic_filter in filters:
            self.transport.subscribe(topic_filter)
        self.transport.start(self.events.put)
        self.limits = self.transport.wait_connected(seconds)
        return self

    def next(self, kind: type, seconds: float = 120.0) -> Any:
        while not isinstance(event := self.events.get(timeout=seconds), kind):
            pass
        return event


class Odd:
    """mosquitto on the loopback interface with lines of a test's own."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self.port = free_port()
        first = f"listener {self.port} 127.0.0.1"
        text = "\n".join((first, "allow_anonymous true", "user root", *lines))
        (folder / "odd.conf").write_text(text + "\n")
        command = ["/usr/sbin/mosquitto", "-c", str(folder / "odd.conf")]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(120)


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Any]:
    needs_mosquitto()
    started: list[Any] = []

    def start(*lines: str) -> Client:
        broker = Odd(tmp_path, *lines)
        client = Client(MqttSettings(f"mqtt://127.0.0.1:{broker.port}", "c"))
        started.extend((client.transport, broker))
        return client

    yield start
    for one in started:
        one.stop()


def test_a_broker_that_retains_nothing_is_named_and_used_all_the_same(odd: Any) -> None:
    client = odd("retain_available false").start("t")
    assert not client.limits.retain and len(lacking(client.limits)) == 1
    assert client.transport.publish(Message("t", b"x", retain=True))
    assert client.next(Received).payload == b"x"


def test_a_broker_without_qos_1_is_named_and_used_all_the_same(odd: Any) -> None:
    client = odd("max_qos 0").start("t")
    assert client.limits.max_qos == 0 and len(lacking(client.limits)) == 1
    assert client.transport.publish(Message("t", b"x"))
    assert client.next(Received).payload == b"x"


@pytest.mark.parametrize(("qos", "heard"), [(0, [b"after"]), (1, [b"away", b"after"])])
def test_what_is_said_meanwhile_waits_for_who_asked_to_hear_it_once_at_least(
    odd: Any, qos: Literal[0, 1], heard: list[bytes]
) -> None:
    speaker = odd().start("said")
    section = BrokerSection(url=speaker.settings.url, insecure=True, qos=qos)
    listener = Client(mqtt_settings(section, "listener")).start("t")
    listener.transport.stop()
    assert speaker.transport.publish(Message("t", b"away")) and speaker.transport.publish(Message("said", b""))
    # With QoS 0 nothing else tells that the broker has it, and a busy one had it only once the listener was back.
    assert speaker.next(Received).payload == b""
    listener = Client(mqtt_settings(section, "listener")).start("t")
    assert speaker.transport.publish(Message("t", b"after"))
    assert [listener.next(Received).payload for _ in heard] == heard
    listener.transport.stop()


def test_a_version_that_is_refused_when_the_other_one_is_asked_for_already_refuses_nothing() -> None:
    client = Client(MqttSettings("mqtt://h", "c"))
    late = PahoClient(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.transport._other_version()
    reason = ReasonCode(PacketTypes.CONNACK, identifier=132)
    client.transport._on_connect(late, None, None, reason, None)
    assert client.transport._failure is None and client.transport._protocol == MQTTProtocolVersion.MQTTv311


def test_a_broker_of_nats_takes_more_subscriptions_than_its_streams_do_by_themselves(tmp_path: Path) -> None:
    """A fleet of 350 has 1,050, all of one stream."""
    needs_nats()
    older = json.loads(configuration(1, tmp_path, {}))
    known = "limits" in older["jetstream"] or "js_api_timeout" in older["mqtt"]
    assert not known, "2.10 refuses words that it does not know"
    with LocalBroker(tmp_path / "broker", ["c"], kind="nats") as broker:
        for number in range(5):
            answered: queue.Queue[list[int]] = queue.Queue()
            # Its session, and with it its subscriptions, stay when it goes.
            client = PahoClient(
                CallbackAPIVersion.VERSION2, f"c{number}", clean_session=False, protocol=MQTTProtocolVersion.MQTTv311
            )
            client.username_pw_set("c", broker.passwords["c"])
            client.on_subscribe = lambda *said, told=answered: told.put([code.value for code in said[3]])
            client.connect("127.0.0.1", broker.port)
            client.loop_start()
            try:
                # A session's own limit is some 1,000.
                client.subscribe([(f"node/{number}/{place}", 1) for place in range(210)])
                assert answered.get(timeout=120) == [1] * 210
            finally:
                client.loop_stop()


def test_websockets_carry_the_same(tmp_path: Path) -> None:
    needs_nats()
    port = free_port()
    text = json.loads(configuration(free_port(), tmp_path / "store", {"c": "word"}))
    # Not in the one that comes with this project: nats-server answers WebSockets too.
    text["websocket"] = {"host": "127.0.0.1", "port": port, "no_tls": True}
    text["authorization"]["users"][0]["allowed_connection_types"] = ["MQTT_WS"]
    (tmp_path / "nats.conf").write_text(json.dumps(text))
    with (tmp_path / "log").open("wb") as log:
        broker = subprocess.Popen([find_nats() or "", "-c", tmp_path / "nats.conf"], stdout=log, stderr=log)
    client = Client(MqttSettings(f"ws://127.0.0.1:{port}/mqtt", "c", "c", "word"))
    try:
        client.start("t", seconds=30)
        assert client.transport.publish(Message("t", b"x" * 100_000))
        assert len(client.next(Received).payload) == 100_000
    finally:
        client.transport.stop()
        broker.terminate()
        broker.wait(120)


def test_two_with_one_id_are_told_and_leave_each_other_longer_and_longer(tmp_path: Path) -> None:
    needs_mosquitto()
    with LocalBroker(tmp_path / "b", ["n"], kind="mosquitto") as broker:
        first, second = Client(broker.settings("one")).start(), Client(broker.settings("one"))
        second.start()
        # This mosquitto does not say why, so it takes a few times to see it.
        reasons = [first.next(Disconnected).reason for _ in range(5)]
        assert [reason for reason in reasons if "is there another program with our client id (one)?" in reason]
        assert reasons[-1] == "lost to another program again"
        first.transport.stop()
        second.transport.stop()


def test_a_broker_that_says_so_names_the_other_program_at_once() -> None:
    client = Client(MqttSettings("mqtt://h", "c"))
    client.transport._sink = client.events.put
    for expected in ("another program with our client id (c) took this session over: stop one", "lost to another"):
        client.transport._linked_at = time.monotonic()
        reason = ReasonCode(PacketTypes.DISCONNECT, identifier=142)
        client.transport._on_disconnect(None, None, None, reason, None)  # type: ignore[arg-type]
        client.transport._tell_loss()
        assert client.events.get_nowait().reason.startswith(expected)


def test_a_broker_that_says_no_is_still_refused(tmp_path: Path) -> None:
    needs_mosquitto()
    with LocalBroker(tmp_path / "b", ["n"], kind="mosquitto") as broker, pytest.raises(BrokerRefused):
        Client(replace(broker.settings("one"), password="wrong")).start()
