# SPDX-License-Identifier: Apache-2.0
"""`deploy/mosquitto/`: each file is what its command writes, explains every line, and has a real mosquitto refuse the
wrong client."""

from __future__ import annotations

import datetime as dt
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from brokers import Client, Mosquitto, eventually, nonce
from click.testing import CliRunner
from cluster import needs_mosquitto

from coordinator.commands.provision import provision as provision_command
from coordinator.provisioning.broker import LocalBroker, free_port
from coordinator.provisioning.provision import Yard, provision
from fedcore.errors import BrokerRefused, TransportError
from fedcore.transport.mqtt import MqttSettings
from fedcore.wire.messages import Topics

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDER = DEPLOY / "mosquitto"
FILES = sorted(FOLDER.rglob("*.conf"))
TOPICS = Topics("reviews")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Yard:
    """What the two commands in the README make, with the names of this machine added to both certificates."""
    root = tmp_path_factory.mktemp("fleet") / "fleet"
    commands = re.findall(r"^    fedkrso provision (.*)$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        words = [str(root) if word == "fleet" else word for word in shlex.split(command)]
        done = CliRunner().invoke(provision_command, words)
        assert done.exit_code == 0, done.output
    return Yard(root)


@pytest.mark.parametrize("name", ["broker", "farm"])
def test_what_provision_writes_is_what_is_read_here(fleet: Yard, name: str) -> None:
    made = fleet.broker if name == "broker" else fleet.site(name)
    for file in ("mosquitto.conf", "access.acl"):
        assert (made / file).read_text() == (FOLDER / name / file).read_text(), (
            f"copy {file} of the README's command to {FOLDER / name}"
        )


def test_what_broker_run_writes_is_what_is_read_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_mosquitto()
    monkeypatch.chdir(tmp_path)
    with LocalBroker(Path("laptop"), kind="mosquitto") as broker:
        written = Path("laptop/mosquitto.conf").read_text().replace(f"listener {broker.port}", "listener 1883")
    # Root must stay root to read its private folder; the file here is an ordinary user's.
    written = written.removesuffix("\n# Started by root, mosquitto goes on as this user.\nuser root\n")
    assert written == (FOLDER / "laptop" / "mosquitto.conf").read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_every_line_is_explained(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert len(FILES) == 3 and any(lines)
    for number, line in enumerate(lines):
        if line and not line.startswith("#"):
            above = next(entry for entry in reversed(lines[:number]) if not entry or entry.startswith("#"))
            assert above.startswith("#"), f"{file}:{number + 1}: nothing says what {line!r} is for"


def started(folder: Path, name: str, changes: Mapping[str, str]) -> Mosquitto:
    """A mosquitto on one of the files, with nothing but paths, ports and hosts changed."""
    text = (FOLDER / name / "mosquitto.conf").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    if os.geteuid() == 0:
        text += "user root\n"
    configuration = folder / f"{name}.conf"
    configuration.write_text(text)
    return Mosquitto(configuration, folder / f"{name}.log", cwd=folder)


def test_the_laptops_broker_takes_its_user_and_no_other(tmp_path: Path) -> None:
    needs_mosquitto()
    with LocalBroker(tmp_path / "laptop", kind="mosquitto") as made:
        password = made.passwords["fedkrso"]
    port = free_port()
    with started(tmp_path, "laptop", {"listener 1883": f"listener {port}"}):
        url = f"mqtt://127.0.0.1:{port}"
        with Client(MqttSettings(url, "a", "fedkrso", password), "t") as client:
            client.ready(client, "t")
            client.say("t", end := nonce())
            assert client.heard(end)
        for user, word in ((None, None), ("fedkrso", "wrong"), ("somebody", password)):
            with pytest.raises(BrokerRefused):
                Client(MqttSettings(url, "b", user, word))


@pytest.fixture
def site(fleet: Yard, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The central broker and the farm's on the files that are read here; their ports."""
    needs_mosquitto()
    # The same keys, with certificates for this machine's name too.
    now = dt.datetime.now(dt.timezone.utc)
    for where in ("", "farm"):
        provision(fleet.root, "reviews", (), hosts=["localhost"], site=where, now=now)
    ports = free_port(), free_port()
    changes = {}
    for port, name, folder in ((ports[0], "broker", fleet.broker), (ports[1], "farm", fleet.site("farm"))):
        (data := tmp_path / f"data-{name}").mkdir()
        paths = {"/etc/mosquitto/fedkrso/": f"{folder}/", "/var/lib/mosquitto": str(data)}
        changes[name] = {**paths, "listener 8883": f"listener {port} 127.0.0.1"}
    changes["farm"]["address broker.example.org:8883"] = f"address localhost:{ports[0]}"
    with started(tmp_path, "broker", changes["broker"]) as central, started(tmp_path, "farm", changes["farm"]) as farm:
        eventually(lambda: " as farm " in central.text(), lambda: central.text() + farm.text())
        yield ports


def settings(fleet: Yard, user: str, port: int, **changes: str | None) -> MqttSettings:
    own = fleet.client(user)
    files = {"certificate_file": "certificate.pem", "key_file": "certificate.key", "ca_file": "authority.pem"}
    given: dict[str, Any] = {key: str(own / name) for key, name in files.items()}
    return MqttSettings(f"mqtts://localhost:{port}", user, **{**given, **changes})


def test_the_sites_brokers_take_their_own_and_no_other(fleet: Yard, site: tuple[int, int], tmp_path: Path) -> None:
    provision(tmp_path / "foreign", "reviews", ["barn-pi"], hosts=["localhost"], now=dt.datetime.now(dt.timezone.utc))
    foreign = Yard(tmp_path / "foreign").client("barn-pi")
    for port in site:
        with pytest.raises(TransportError, match="the broker wants a certificate"):
            Client(settings(fleet, "barn-pi", port, certificate_file=None, key_file=None))
        with pytest.raises(TransportError, match="our certificate is of another authority"):
            wrong = {"certificate_file": str(foreign / "certificate.pem"), "key_file": str(foreign / "certificate.key")}
            Client(settings(fleet, "barn-pi", port, **wrong))
    with (
        Client(settings(fleet, "coordinator", site[0]), "#") as coordinator,
        Client(settings(fleet, "barn-pi", site[1]), "#") as barn,
    ):
        barn.ready(coordinator, TOPICS.down("barn-pi", "telemetry"))
        coordinator.ready(barn, TOPICS.up("barn-pi", "telemetry"))
        barn.say(TOPICS.status("garden-pi"), b"forged", retain=True)
        barn.say(TOPICS.up("barn-pi", "offer"), end := nonce())
        assert coordinator.heard(end) == [(TOPICS.up("barn-pi", "offer"), end)]
        coordinator.say(TOPICS.plan, end := nonce(), retain=True)
        assert barn.heard(end) == [(TOPICS.plan, end)]
    # A node of the farm has no rights at the central broker, nor one of the centre at the farm.
    for port, user in ((site[0], "barn-pi"), (site[1], "garden-pi")):
        with Client(settings(fleet, user, port)) as stray:
            stray.say(TOPICS.up(user, "offer"), b"stray")
            eventually(lambda: not stray.transport._under_way, lambda: "not acknowledged")  # noqa: B023 - called at once
    with (
        Client(settings(fleet, "coordinator", site[0]), "#") as coordinator,
        Client(settings(fleet, "barn-pi", site[1])) as barn,
    ):
        coordinator.ready(barn, TOPICS.up("barn-pi", "telemetry"))
        barn.say(TOPICS.up("barn-pi", "offer"), end := nonce())
        assert b"stray" not in [payload for _, payload in coordinator.heard(end)]
