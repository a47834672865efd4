# SPDX-License-Identifier: Apache-2.0
"""A real broker with what `fedkrso provision` makes: who gets in, what they may do there, and what the others are
told."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import queue
import random
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cluster import needs_mosquitto

from coordinator.provisioning.broker import LocalBroker
from coordinator.provisioning.provision import Yard, provision, revoke
from edge_client.commands.doctor import doctor
from fedcore.config.broker import mqtt_settings
from fedcore.config.sections import BrokerSection
from fedcore.errors import BrokerRefused, BrokerUnreachable, ConfigError, TransportError
from fedcore.transport.base import Disconnected, Message, Received
from fedcore.transport.mqtt import MqttSettings, MqttTransport
from fedcore.wire.messages import Topics

TOPICS = Topics("voice")
USERS = ("coordinator", "a", "b")
READY = b"ready"


class Client:
    """A connected user and what it has received."""

    def __init__(self, settings: MqttSettings, *filters: str, patience: float = 15.0) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.filters = filters
        self.transport = MqttTransport(settings, random.Random(0))
        for entry in filters:
            self.transport.subscribe(entry)
        self.transport.start(self.events.put)
        try:
            self.transport.wait_connected(patience)
        except TransportError:
            self.transport.stop()
            raise

    def publish(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> None:
        assert self.transport.publish(Message(topic, payload, retain=retain))

    def next(self, seconds: float = 15.0) -> tuple[str, bytes]:
        """The next message but for those of `ready`."""
        deadline = time.monotonic() + seconds
        while True:
            event = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            if isinstance(event, Received) and event.payload != READY:
                return event.topic, event.payload

    def ready(self, sender: Client, topic: str) -> None:
        """Wait until the broker has our subscriptions: until what `sender` writes to one of them arrives."""
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            sender.publish(topic, READY)
            with contextlib.suppress(queue.Empty):
                while True:
                    event = self.events.get(timeout=0.2)
                    if isinstance(event, Received) and event.payload == READY:
                        return
        raise AssertionError(f"{topic} does not arrive")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        # The broker keeps a user's session: the next test's must not inherit these.
        for entry in self.filters:
            self.transport.unsubscribe(entry)
        self.transport.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """One broker for the tests that change nothing about it."""
    needs_mosquitto()
    with LocalBroker(
        tmp_path_factory.mktemp("shared") / "broker", USERS, kind="mosquitto", tls=True, run="voice"
    ) as started:
        yield started


def client(broker: LocalBroker, user: str, *filters: str, client_id: str = "") -> Client:
    if user != "coordinator":
        return Client(broker.settings(client_id or user, user), *filters)
    made = Client(broker.settings(user, user), *filters, TOPICS.probe)
    made.ready(made, TOPICS.probe)
    return made


def lost(events: queue.Queue[Any]) -> str:
    """Why a link was lost, or does not come back."""
    while not isinstance(event := events.get(timeout=20), Disconnected):
        pass
    return event.reason


def refusal(settings: MqttSettings, kind: type[TransportError] = BrokerRefused) -> str:
    """The one line that a client is told, soon."""
    started = time.monotonic()
    with pytest.raises(kind) as error:
        Client(settings, patience=8.0 if kind is BrokerRefused else 3.0)
    assert time.monotonic() - started < 6
    line = error.value.one_line()
    assert "\n" not in line and error.value.remedy
    return line


def test_a_device_writes_under_its_own_prefix_only_and_is_met_with_silence_elsewhere(shared: LocalBroker) -> None:
    with client(shared, "coordinator", "#") as coordinator, client(shared, "b", "#") as b, client(shared, "a") as a:
        b.ready(coordinator, TOPICS.down("b", "ready"))
        forbidden = [TOPICS.status("b"), TOPICS.up("b", "offer"), TOPICS.down("b", "grant"), TOPICS.down("a", "grant")]
        forbidden += [
            TOPICS.plan,
            TOPICS.published_state("1-whole", 0),
            TOPICS.probe,
            "fedkrso/2/other/node/a/status",
            "elsewhere",
        ]
        for topic in forbidden:
            a.publish(topic, b"forged", retain=topic == TOPICS.plan)
        a.publish(TOPICS.status("a"), b"own")
        a.publish(TOPICS.up("a", "offer"), b"own")
        # A broker keeps one sender's order: what was to arrive before these two would have.
        assert [coordinator.next(), coordinator.next()] == [
            (TOPICS.status("a"), b"own"),
            (TOPICS.up("a", "offer"), b"own"),
        ]
        coordinator.publish(TOPICS.plan, b"real", retain=True)
        assert b.next() == (TOPICS.plan, b"real")
    with client(shared, "b", TOPICS.plan) as late:
        assert late.next() == (TOPICS.plan, b"real")


def test_a_device_reads_its_own_down_and_nobody_elses(shared: LocalBroker) -> None:
    spying = ("#", TOPICS.down("b", "#"), TOPICS.up("b", "#"))
    with (
        client(shared, "a", *spying) as a,
        client(shared, "b", "#") as b,
        client(shared, "coordinator", TOPICS.up("+", "#")) as coordinator,
    ):
        a.ready(coordinator, TOPICS.down("a", "ready"))
        b.publish(TOPICS.up("b", "offer"), b"private")
        assert coordinator.next() == (TOPICS.up("b", "offer"), b"private")
        coordinator.publish(TOPICS.down("b", "grant"), b"private")
        coordinator.publish(TOPICS.published_state("1-whole", 0), b"public")
        coordinator.publish(TOPICS.down("a", "grant"), b"for a")
        while (first := a.next())[0] == TOPICS.plan:
            pass
        assert [first, a.next()] == [
            (TOPICS.published_state("1-whole", 0), b"public"),
            (TOPICS.down("a", "grant"), b"for a"),
        ]


def test_the_coordinator_may_not_speak_for_a_node_but_hears_itself_on_its_probe(shared: LocalBroker) -> None:
    with client(shared, "coordinator", TOPICS.status("+")) as coordinator:
        coordinator.publish(TOPICS.status("a"), b"forged")
        coordinator.publish(TOPICS.probe, b"echo")
        assert coordinator.next() == (TOPICS.probe, b"echo")


def test_nobody_takes_over_anothers_session_with_its_client_id(shared: LocalBroker) -> None:
    with (
        client(shared, "a", client_id="same") as a,
        client(shared, "b", client_id="same") as b,
        client(shared, "coordinator", "#") as all_,
    ):
        for sender, name in ((a, "a"), (b, "b")):
            sender.publish(TOPICS.status(name), b"here")
            assert all_.next() == (TOPICS.status(name), b"here")
        assert not any(isinstance(event, Disconnected) for event in (*a.events.queue, *b.events.queue))


def test_a_revoked_node_loses_its_rights_at_once_and_cannot_come_back(tmp_path: Path) -> None:
    needs_mosquitto()
    with LocalBroker(tmp_path / "broker", USERS, kind="mosquitto", tls=True, run="voice") as broker:
        assert broker.yard is not None
        now = dt.datetime.now(dt.timezone.utc)
        old = tmp_path / "old.pem"
        shutil.copy(broker.yard.client("a") / "certificate.pem", old)
        provision(broker.yard.root, "voice", [], renew=["a"], now=now)
        earlier = replace(broker.settings("a", "a"), certificate_file=str(old))
        for settings in (earlier, broker.settings("a", "a")):
            Client(settings).transport.stop()
        with client(broker, "coordinator", "#") as coordinator, client(broker, "a") as a, client(broker, "b") as b:
            a.publish(TOPICS.status("a"), b"before")
            assert coordinator.next() == (TOPICS.status("a"), b"before")
            revoke(broker.yard.root, ["a"], now=now)
            broker.reload()
            # The broker reloads between two messages: what b sends after one of a's that has gone through shows what
            # became of a's.
            b.publish(TOPICS.status("b"), b"first")
            while coordinator.next() != (TOPICS.status("b"), b"first"):
                pass
            a.publish(TOPICS.status("a"), b"after")
            while a.transport._under_way:
                time.sleep(0.01)
            b.publish(TOPICS.status("b"), b"second")
            assert coordinator.next() == (TOPICS.status("b"), b"second")
            broker.stop()
            broker.start()
            while "our certificate is revoked" not in (reason := lost(a.events)):
                assert (
                    "is the broker running" in reason
                    or "the connection was lost" in reason
                    or "closed the connection" in reason
                )
        for settings in (earlier, broker.settings("a", "a")):
            assert refusal(settings).endswith(
                "TLS: our certificate is revoked (give the device another id: fedkrso provision)"
            )
        client(broker, "b").transport.stop()


def test_another_authoritys_certificate_is_refused(shared: LocalBroker, tmp_path: Path) -> None:
    provision(tmp_path / "p", "voice", ["a"], hosts=["127.0.0.1"], now=dt.datetime.now(dt.timezone.utc))
    own = Yard(tmp_path / "p").client("a")
    settings = replace(
        shared.settings("a", "a"), certificate_file=str(own / "certificate.pem"), key_file=str(own / "certificate.key")
    )
    assert (
        "TLS: our certificate is of another authority (use the one that `fedkrso provision` made with this broker's)"
        in refusal(settings)
    )
    # And seen from the other side: a broker that is not ours gets no further than its certificate.
    settings = replace(settings, ca_file=str(own / "authority.pem"))
    assert "the broker's certificate is not trusted: " in (line := refusal(settings)) and "broker.ca_file" in line


def test_no_certificate_and_the_brokers_own_are_refused(shared: LocalBroker) -> None:
    assert shared.yard is not None
    settings = replace(shared.settings("a", "a"), certificate_file=None, key_file=None)
    assert "TLS: the broker wants a certificate (set broker.certificate_file and broker.key_file)" in refusal(settings)
    broker = shared.yard.broker
    settings = replace(settings, certificate_file=str(broker / "broker.pem"), key_file=str(broker / "broker.key"))
    assert "TLS: our certificate is not one for clients (check broker.certificate_file)" in refusal(settings)


def test_certificates_that_have_run_out_are_named_on_both_sides(shared: LocalBroker, tmp_path: Path) -> None:
    assert shared.yard is not None
    root = tmp_path / "p"
    shutil.copytree(shared.yard.root, root)
    provision(
        root, "voice", [], renew=["a", "broker"], days=1, now=dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=30)
    )
    settings = replace(shared.settings("a", "a"), certificate_file=str(Yard(root).client("a") / "certificate.pem"))
    assert "TLS: our certificate has run out (fedkrso provision --renew" in refusal(settings)
    with tls_server(root, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3) as port:
        line = refusal(replace(shared.settings("a", "a"), url=f"mqtts://127.0.0.1:{port}"))
    assert (
        "TLS: the broker's certificate has run out (fedkrso provision --renew broker; check this machine's clock)"
        in line
    )


class tls_server:  # noqa: N801 - used like a function
    """A TLS server of some versions, with the broker's certificate of a provisioned folder."""

    def __init__(self, root: Path, lowest: ssl.TLSVersion, highest: ssl.TLSVersion) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_ciphers("ALL:@SECLEVEL=0")
        self._context.load_cert_chain(root / "broker" / "broker.pem", root / "broker" / "broker.key")
        self._context.minimum_version, self._context.maximum_version = lowest, highest
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return
            with link, contextlib.suppress(OSError):
                self._context.wrap_socket(link, server_side=True).close()

    def __enter__(self) -> int:
        self._thread.start()
        port: int = self._socket.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_tls_1_1_is_refused_by_us_and_by_the_broker(shared: LocalBroker) -> None:
    assert shared.yard is not None
    with tls_server(shared.yard.root, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1) as port:
        line = refusal(replace(shared.settings("a", "a"), url=f"mqtts://127.0.0.1:{port}"))
    assert "TLS: the broker speaks no TLS 1.2 or later (set tls_version tlsv1.2 there, or take a newer broker)" in line
    own = shared.yard.client("a")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_verify_locations(own / "authority.pem")
    context.load_cert_chain(own / "certificate.pem", own / "certificate.key")
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    for highest, expected in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_1, "")):
        context.maximum_version = highest
        with socket.create_connection(("127.0.0.1", shared.port)) as plain:
            if expected:
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as link:
                    assert link.version() == expected
            else:
                with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
                    context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_host_that_is_not_in_the_certificate_is_refused(shared: LocalBroker) -> None:
    # The same address by a name that the certificate does not carry, and by one that it does.
    line = refusal(replace(shared.settings("a", "a"), url=f"mqtts://127.1:{shared.port}"))
    assert (
        "TLS: the broker's certificate is not for 127.1 (fedkrso provision --broker-host 127.1, or another host in broker.url)"
        in line
    )
    Client(replace(shared.settings("a", "a"), url=f"mqtts://localhost:{shared.port}")).transport.stop()


def test_tls_and_plain_do_not_meet(shared: LocalBroker, tmp_path: Path) -> None:
    line = refusal(MqttSettings(f"mqtt://127.0.0.1:{shared.port}", "a"), BrokerUnreachable)
    assert "if it wants TLS, write mqtts:// in broker.url" in line
    with LocalBroker(tmp_path / "plain", kind="mosquitto") as plain:
        line = refusal(replace(shared.settings("a", "a"), url=f"mqtts://127.0.0.1:{plain.port}"), BrokerUnreachable)
    assert "is the broker running there, and is this its port for TLS?" in line


def test_files_that_cannot_be_used_are_named_before_anything_connects(shared: LocalBroker, tmp_path: Path) -> None:
    assert shared.yard is not None
    own, other = shared.yard.client("a"), shared.yard.client("b")
    files = {
        "ca_file": own / "authority.pem",
        "certificate_file": own / "certificate.pem",
        "key_file": own / "certificate.key",
    }
    (tmp_path / "text").write_text("no certificate")
    wrong = [
        ({"ca_file": tmp_path / "none"}, r"broker.ca_file: .*none: cannot be read: No such file"),
        ({"ca_file": tmp_path / "text"}, r"broker.ca_file: .*text: cannot be used: .*\(it must be PEM\)"),
        ({"key_file": other / "certificate.key"}, r"broker.certificate_file: .* must be PEM, and belong together"),
        ({"certificate_file": None}, r"broker.key_file: a key without its certificate \(set broker.certificate_file\)"),
    ]
    for changes, match in wrong:
        given = {key: str(value) for key, value in {**files, **changes}.items() if value is not None}
        with pytest.raises(ConfigError, match=match):
            mqtt_settings(BrokerSection(url=shared.url, **given), "a")


def test_a_plain_broker_needs_to_be_asked_for() -> None:
    with pytest.raises(ConfigError) as error:
        BrokerSection(url="mqtt://h")
    assert "broker.insecure: " in (line := error.value.one_line()) and "mqtts://" in line and "insecure = true" in line
    assert BrokerSection(url="mqtt://h", insecure=True).insecure
    # The flag takes nothing from TLS: the host is checked all the same.
    assert MqttSettings("MQTTS://h", "x").tls and not MqttSettings("mqtt://h", "x").tls


def test_amqtt_serves_tls_with_passwords(tmp_path: Path) -> None:
    with LocalBroker(tmp_path / "broker", USERS, kind="amqtt", tls=True, run="voice") as broker:
        with client(broker, "a", "t") as a:
            a.publish("t", b"hello")
            assert a.next() == ("t", b"hello")
        assert "broker.password" in refusal(replace(broker.settings("a", "a"), password="wrong"))
        assert "not trusted" in refusal(replace(broker.settings("a", "a"), ca_file=None))


def test_doctor_takes_certificates(shared: LocalBroker) -> None:
    files = shared.settings("a", "a")
    assert files.ca_file and files.certificate_file and files.key_file
    arguments = ["--json", "--quick", "--broker", shared.url, "--ca-file", files.ca_file]
    right = CliRunner().invoke(
        doctor, [*arguments, "--certificate-file", files.certificate_file, "--key-file", files.key_file]
    )
    found = {check["check"]: check for check in json.loads(right.stdout)}["broker"]
    assert (
        found["state"] == "ok"
        and found["found"].startswith("MQTT 5, packets up to 2000000 bytes")
        and found["found"].endswith("TLS")
    )
    wrong = CliRunner().invoke(doctor, arguments)
    found = {check["check"]: check for check in json.loads(wrong.stdout)}["network"]
    assert wrong.exit_code == 1 and found["state"] == "error"
    assert "wants a certificate" in found["found"] and "certificate_file" in found["remedy"]
