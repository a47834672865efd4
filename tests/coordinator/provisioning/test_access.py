# SPDX-License-Identifier: Apache-2.0
"""Access rules on a real broker with what `fedkrso provision` makes: what each client may write and read, and what a
revoked one may not."""

from __future__ import annotations

import datetime as dt
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from cluster import needs_mosquitto

from coordinator.commands.provision import provision as provision_command
from coordinator.provisioning.broker import LocalBroker, find_mosquitto, free_port
from coordinator.provisioning.provision import provision, revoke
from fedcore.transport.base import Disconnected
from tests.coordinator.provisioning.clients import TOPICS, USERS, Client, client, lost, refusal


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


def test_as_root_mosquitto_reads_what_provision_wrote_once_it_is_copied_as_said() -> None:
    """mosquitto becomes the user `mosquitto`, who may not look into a private folder."""
    needs_mosquitto()
    if os.geteuid() != 0 or not any(user.pw_name == "mosquitto" for user in pwd.getpwall()):
        pytest.skip("needs root, and the user mosquitto")
    with tempfile.TemporaryDirectory(prefix="fedkrso-") as folder, ExitStack() as ended:
        # Pytest's own folder is closed to others.
        root, port = Path(folder), free_port()
        root.chmod(0o755)
        options = ["--out", str(root / "fleet"), "--broker-host", "localhost", "--port", str(port)]
        options += ["--broker-folder", str(root / "etc"), "--broker-data", str(root / "var")]
        said = CliRunner().invoke(provision_command, ["voice", "a", *options]).output
        (root / "var").mkdir()
        shutil.chown(root / "var", "mosquitto", "mosquitto")
        copying = [line.strip().removeprefix("sudo ") for line in said.splitlines() if " sudo install " in line]
        assert len(copying) == 2
        for line in copying:
            subprocess.run(line, shell=True, check=True, cwd=root / "fleet")
        command = [str(find_mosquitto()), "-c", str(root / "etc" / "mosquitto.conf")]
        process = ended.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        ended.callback(process.terminate)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        process.terminate()
        raise AssertionError(process.communicate()[1])
