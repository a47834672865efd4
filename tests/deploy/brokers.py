# SPDX-License-Identifier: Apache-2.0
"""Real mosquittos on configurations that `fedkrso provision` wrote: one alone, or a site's bridged to a central one."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import queue
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from relay import Relay

from coordinator.provisioning.broker import find_mosquitto, free_port
from coordinator.provisioning.provision import Yard, provision
from fedcore.errors import TransportError
from fedcore.system.processes import die_with_parent
from fedcore.transport.base import Message, Received
from fedcore.transport.mqtt import MqttSettings, MqttTransport
from fedcore.wire.identity import Enrolment

SITE = "annex"
_READY = b"ready"


class Mosquitto:
    """A mosquitto on a configuration file; use it as a context manager."""

    def __init__(self, configuration: Path, log: Path, cwd: Path | None = None) -> None:
        self.configuration, self.log, self._cwd = configuration, log, cwd
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        binary = find_mosquitto()
        assert binary is not None
        running = self.log.read_bytes().count(b" running") if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [binary, "-c", str(self.configuration)],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
                cwd=self._cwd,
            )
        eventually(lambda: self.log.read_bytes().count(b" running") > running, self.text)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def reload(self) -> None:
        assert self._process is not None
        before = self.text().count("Reloading config")
        self._process.send_signal(signal.SIGHUP)
        eventually(lambda: self.text().count("Reloading config") > before, self.text)

    def stop(self) -> None:
        """As the product ends its own: mosquitto 2.0 with WebSockets was seen to stay after SIGTERM, once in 400 times."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Mosquitto:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Client:
    """A connected user and what it has received."""

    def __init__(self, settings: MqttSettings, *filters: str) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.transport = MqttTransport(settings, random.Random(0))
        for entry in filters:
            self.transport.subscribe(entry)
        self.transport.start(self.events.put)
        try:
            self.transport.wait_connected(60)
        except TransportError:
            self.transport.stop()
            raise

    def say(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> None:
        assert self.transport.publish(Message(topic, payload, retain=retain))

    def ready(self, sender: Client, topic: str) -> None:
        """Wait until everything between has its subscriptions: until what `sender` writes to one of ours arrives."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            sender.say(topic, _READY)
            with contextlib.suppress(queue.Empty):
                while True:
                    event = self.events.get(timeout=0.2)
                    if isinstance(event, Received) and event.payload == _READY:
                        return
        raise AssertionError(f"{topic} does not arrive")

    def next(self, seconds: float = 120.0) -> tuple[str, bytes]:
        """What comes next, but for what `ready` sent."""
        deadline = time.monotonic() + seconds
        while True:
            event = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            if isinstance(event, Received) and event.payload != _READY:
                return event.topic, event.payload

    def heard(self, until: bytes) -> list[tuple[str, bytes]]:
        """All that came up to a payload, that one included."""
        found = [self.next()]
        while found[-1][1] != until:
            found.append(self.next())
        return found

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.stop()


class Bridged:
    """A central broker, a site's broker, and between them a link that can be cut; use it as a context manager.

    Args:
        folder: For everything.
        run: Whose topics may be used.
        here: Nodes at the central broker.
        there: Nodes at the site's.
    """

    def __init__(self, folder: Path, run: str, here: tuple[str, ...], there: tuple[str, ...]) -> None:
        self.yard, self._there = Yard(folder / "provisioned"), there
        self._ports = {False: free_port(), True: free_port()}
        self.relay = Relay(self._ports[False])
        now = dt.datetime.now(dt.timezone.utc)
        hosts = ("127.0.0.1", "localhost")
        options = self._options(folder, self.yard.broker, site=False)
        provision(self.yard.root, run, here, hosts=hosts, options=options, now=now)
        options = self._options(folder, self.yard.site(SITE), site=True)
        central = f"localhost:{self.relay.port}"
        provision(self.yard.root, run, there, hosts=hosts, options=options, site=SITE, central=central, now=now)
        self.central = Mosquitto(self.yard.broker / "mosquitto.conf", folder / "central.log")
        self.site = Mosquitto(self.yard.site(SITE) / "mosquitto.conf", folder / "site.log")
        eventually(lambda: f" as {SITE} " in self.central.text(), lambda: self.central.text() + self.site.text())

    def settings(self, user: str) -> MqttSettings:
        """How the coordinator or a node connects; the site's name gives its bridge's certificate at the central
        broker."""
        own, stem = (self.yard.site(user), "bridge") if user == SITE else (self.yard.client(user), "certificate")
        files: dict[str, Any] = {
            "certificate_file": str(own / f"{stem}.pem"),
            "key_file": str(own / f"{stem}.key"),
            "ca_file": str(own / "authority.pem"),
        }
        return MqttSettings(self._url(user), user, **files)

    def sections(self, user: str) -> str:
        """The `[broker]` and `[trust]` sections of a user's job or node file."""
        settings, enrolment = self.settings(user), Enrolment.load(self.yard.enrolled)
        files = {
            "ca_file": settings.ca_file,
            "certificate_file": settings.certificate_file,
            "key_file": settings.key_file,
        }
        broker = {"url": settings.url, **files}
        trust = {"signing_key": str(self.yard.signing_key(user))}
        trust |= (
            {"enrolled": str(self.yard.enrolled)}
            if user == "coordinator"
            else {"coordinator_key": enrolment.coordinator}
        )
        return "\n".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items())
            for name, section in (("broker", broker), ("trust", trust))
        )

    def stop(self) -> None:
        self.site.stop()
        self.central.stop()
        self.relay.stop()

    def __enter__(self) -> Bridged:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _url(self, user: str) -> str:
        return f"mqtts://127.0.0.1:{self._ports[user in self._there]}"

    def _options(self, folder: Path, files: Path, *, site: bool) -> dict[str, Any]:
        data = folder / ("data-site" if site else "data-central")
        data.mkdir(parents=True)
        # As root mosquitto would become the user `mosquitto`, who may not read a private folder.
        user = "root" if os.geteuid() == 0 else ""
        options = {
            "port": self._ports[site],
            "address": "127.0.0.1",
            "folder": str(files),
            "persistence": str(data),
            "user": user,
        }
        return {**options, "autosave_seconds": 1}


def eventually(true: Callable[[], bool], tell: Callable[[], str], seconds: float = 120.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, tell()[-3000:]
        time.sleep(0.02)


def nonce() -> bytes:
    """A payload that nothing else has."""
    return secrets.token_hex(8).encode()
