# SPDX-License-Identifier: Apache-2.0
"""A real broker with what `fedkrso provision` makes: who gets in, and what the others are told."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import random
import shutil
import socket
import ssl
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cluster import needs_nats

from coordinator.provisioning.broker import LocalBroker
from coordinator.provisioning.provision import Yard, provision
from edge_client.commands.doctor import doctor
from fedcore.config.broker import mqtt_settings
from fedcore.config.sections import BrokerSection
from fedcore.errors import BrokerUnreachable, ConfigError, TransportError
from fedcore.transport.base import Denied, Message
from fedcore.transport.mqtt import MqttSettings, MqttTransport
from tests.coordinator.provisioning.clients import TOPICS, USERS, Client, client, lost, refusal


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
        self._thread.join(120)


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
    wrong: list[tuple[dict[str, Path | None], str]] = [
        ({"ca_file": tmp_path / "none"}, r"broker.ca_file: .*none: cannot be read: No such file"),
        ({"ca_file": tmp_path / "text"}, r"broker.ca_file: .*text: cannot be used: .*\(it must be PEM\)"),
        ({"key_file": other / "certificate.key"}, r"broker.certificate_file: .* must be PEM, and belong together"),
        ({"certificate_file": None}, r"broker.key_file: a key without its certificate \(set broker.certificate_file\)"),
    ]
    for changes, match in wrong:
        given: dict[str, Any] = {key: str(value) for key, value in {**files, **changes}.items() if value is not None}
        with pytest.raises(ConfigError, match=match):
            mqtt_settings(BrokerSection(url=shared.url, **given), "a")


def test_a_plain_broker_needs_to_be_asked_for() -> None:
    with pytest.raises(ConfigError) as error:
        BrokerSection(url="mqtt://h")
    assert "broker.insecure: " in (line := error.value.one_line()) and "mqtts://" in line and "insecure = true" in line
    assert BrokerSection(url="mqtt://h", insecure=True).insecure
    # The flag takes nothing from TLS: the host is checked all the same.
    assert MqttSettings("MQTTS://h", "x").tls and not MqttSettings("mqtt://h", "x").tls


def test_nats_serves_tls_with_passwords_and_lets_each_do_what_it_may(tmp_path: Path) -> None:
    needs_nats()
    with LocalBroker(tmp_path / "broker", USERS, kind="nats", tls=True, run="voice") as broker:
        reads = (TOPICS.status("+"), TOPICS.up("+", "#"))
        with (
            client(broker, "coordinator", *reads) as coordinator,
            client(broker, "b", TOPICS.plan, TOPICS.down("b", "#")) as b,
            client(broker, "a", TOPICS.down("a", "#"), TOPICS.down("b", "#"), TOPICS.up("b", "#"), "#") as a,
        ):
            b.ready(coordinator, TOPICS.down("b", "ready"))
            # This broker says so.
            denied = set[str]()
            while len(denied) < 3:
                if isinstance(event := a.events.get(timeout=120), Denied):
                    denied.add(event.topic_filter)
            assert denied == {TOPICS.down("b", "#"), TOPICS.up("b", "#"), "#"}
            for topic in (TOPICS.status("b"), TOPICS.up("b", "offer"), TOPICS.down("b", "grant"), TOPICS.plan, "else"):
                a.publish(topic, b"forged")
            a.publish(TOPICS.status("a"), b"own")
            assert coordinator.next() == (TOPICS.status("a"), b"own")
            coordinator.publish(TOPICS.down("b", "grant"), b"private")
            coordinator.publish(TOPICS.down("a", "grant"), b"for a")
            coordinator.publish(TOPICS.plan, b"real", retain=True)
            assert a.next() == (TOPICS.down("a", "grant"), b"for a")
            assert {b.next(), b.next()} == {(TOPICS.down("b", "grant"), b"private"), (TOPICS.plan, b"real")}
            # Unlike mosquitto's, sessions are those of a client id alone: docs/deploy.md says so.
            with client(broker, "b", client_id="a"):
                assert lost(a.events)
        assert "broker.password" in refusal(replace(broker.settings("a", "a"), password="wrong"))
        assert "not trusted" in refusal(replace(broker.settings("a", "a"), ca_file=None))


def test_nats_sends_no_last_will_that_its_client_may_not_say(tmp_path: Path) -> None:
    needs_nats()
    with (
        LocalBroker(tmp_path / "broker", USERS, kind="nats", tls=True, run="voice") as broker,
        client(broker, "coordinator", TOPICS.status("+")) as coordinator,
    ):
        for user in ("b", "a"):
            transport = MqttTransport(broker.settings("a", "a"), random.Random(0))
            transport.start(lambda event: None, Message(TOPICS.status(user), b"gone"))
            with contextlib.suppress(TransportError):
                transport.wait_connected(5)
            transport.abandon()
        assert coordinator.next() == (TOPICS.status("a"), b"gone")


def test_a_broker_that_is_started_again_keeps_its_passwords_and_a_running_client_comes_back(tmp_path: Path) -> None:
    """As `fedkrso broker run` does, in the same folder and at the same port."""
    first = LocalBroker(tmp_path / "broker", ("a",))
    with client(first, "a", "t") as a:
        first.stop()
        with LocalBroker(tmp_path / "broker", ("a", "b"), port=first.port) as second:
            assert second.passwords["a"] == first.passwords["a"] != second.passwords["b"]
            with client(second, "b") as b:
                a.ready(b, "t")


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
