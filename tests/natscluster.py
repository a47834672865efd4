# SPDX-License-Identifier: Apache-2.0
"""Three nats-servers as one clustered broker of MQTT: what is retained, and sessions, lie on all three. Each can be
killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from coordinator.provisioning import nats
from coordinator.provisioning.broker import free_port
from fedcore.errors import TransportError
from fedcore.system.processes import die_with_parent
from fedcore.transport.address import MqttSettings
from fedcore.transport.base import Message, Received, TransportEvent
from fedcore.transport.mqtt import MqttTransport
from fedcore.transport.reach import reach

__all__ = ["NatsCluster"]

_SERVERS = 3
_START_SECONDS = 300.0
# On a busy machine a login alone may take ten.
_LOGIN_SECONDS = 30.0


def _hear(heard: set[bytes], event: TransportEvent) -> None:
    if isinstance(event, Received):
        heard.add(event.payload)


class NatsCluster:
    """A cluster on the loopback interface; its users have passwords, and each has a server of its own.

    Args:
        folder: For configurations, stores and logs.
        users: Their names; the first one is the coordinator.
        replicas: On how many of the servers sessions and what is retained lie.
    """

    def __init__(self, folder: Path, users: Sequence[str], replicas: int = _SERVERS) -> None:
        program = nats.find_nats()
        assert program is not None, "needs_nats"
        self._program, self.folder, version = program, folder, nats.version_of(program)
        folder.mkdir(parents=True, exist_ok=True)
        self.passwords = {user: secrets.token_urlsafe(12) for user in users}
        self._server_of = {user: number % _SERVERS for number, user in enumerate(users)}
        for user, word in self.passwords.items():
            (folder / f"{user}.password").touch(0o600)
            (folder / f"{user}.password").write_text(word)
        self.ports = [free_port() for _ in range(_SERVERS)]
        routes = [free_port() for _ in range(_SERVERS)]
        for number, port in enumerate(self.ports):
            made = json.loads(nats.configuration(port, folder / f"store-{number}", self.passwords, version=version))
            made["server_name"] = f"fedkrso-{number}"
            made["cluster"] = {
                "name": "fedkrso",
                "host": "127.0.0.1",
                "port": routes[number],
                "routes": [f"nats://127.0.0.1:{route}" for route in routes],
                # One machine, three servers: what more links to each would bring, others do not get.
                "pool_size": -1,
            }
            made["mqtt"]["stream_replicas"] = replicas
            # What a coordinator hears comes from another server than its own: more may be on its way.
            made["mqtt"]["max_ack_pending"] = 1024
            (folder / f"{number}.conf").write_text(json.dumps(made))
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * _SERVERS
        for number in range(_SERVERS):
            self.start(number, wait=False)
        for number in range(_SERVERS):
            self.wait(number)
        self._settle()

    def start(self, number: int, *, wait: bool = True) -> None:
        """Start a server."""
        environment = {**nats.ENVIRONMENT, **os.environ}
        with (self.folder / f"{number}.log").open("ab") as log:
            self.processes[number] = subprocess.Popen(
                [self._program, "-c", self.folder / f"{number}.conf"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=die_with_parent,
            )
        if wait:
            self.wait(number)

    def wait(self, number: int) -> None:
        """Wait until somebody can log in at a server: its cluster has a leader then."""
        until = time.monotonic() + _START_SECONDS
        user = next(iter(self.passwords))
        while True:
            process = self.processes[number]
            assert process is not None and process.poll() is None, self.said(number)
            settings = MqttSettings(self.url(number), f"look-{number}", user, self.passwords[user])
            try:
                reach(settings, _LOGIN_SECONDS)
                return
            except TransportError:
                assert time.monotonic() < until, self.said(number)
                time.sleep(0.2)

    def _settle(self) -> None:
        """Wait until what is said at each server is heard at the others."""
        user, until = next(iter(self.passwords)), time.monotonic() + _START_SECONDS
        with contextlib.ExitStack() as stack:
            heard: list[set[bytes]] = [set() for _ in range(_SERVERS)]
            links = []
            for number in range(_SERVERS):
                settings = MqttSettings(self.url(number), f"settle-{number}", user, self.passwords[user])
                link = MqttTransport(settings, random.Random(number))
                link.subscribe("settle/#")
                link.start(partial(_hear, heard[number]))
                stack.callback(link.stop)
                links.append(link)
            names = {bytes([number]) for number in range(_SERVERS)}
            while any(here != names for here in heard):
                assert time.monotonic() < until, [self.said(number) for number in range(_SERVERS)]
                for name, link in zip(sorted(names), links, strict=True):
                    link.publish(Message(f"settle/{name[0]}", name))
                time.sleep(0.5)

    def said(self, number: int) -> str:
        """The end of a server's log."""
        return (self.folder / f"{number}.log").read_text(errors="replace")[-2000:]

    def url(self, number: int) -> str:
        return f"mqtt://127.0.0.1:{self.ports[number]}"

    def kill(self, number: int) -> None:
        """End a server at once; the other two go on."""
        process = self.processes[number]
        assert process is not None
        process.kill()
        process.wait()

    def sections(self, user: str) -> str:
        """The `[broker]` section of a user's file."""
        password = self.folder / f"{user}.password"
        return (
            f'\n[broker]\nurl = "{self.url(self._server_of[user])}"\ninsecure = true\nusername = "{user}"\n'
            f'password_file = "{password}"\n'
        )

    def stop(self) -> None:
        """End all of them."""
        for process in self.processes:
            if process is not None and process.poll() is None:
                process.terminate()
        for process in self.processes:
            if process is not None:
                process.wait()

    def __enter__(self) -> NatsCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
