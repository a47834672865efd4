# SPDX-License-Identifier: Apache-2.0
"""A broker of one's own on the loopback interface: mosquitto where there is one, else amqtt, as a child process.

For the demo, for tests, and for a first run at home (`fedkrso broker run`). Users have generated passwords; nobody is anonymous.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Literal

from fedcore.errors import BrokerUnreachable, TransportError
from fedcore.processes import die_with_parent
from fedcore.transport.base import TransportEvent
from fedcore.transport.mqtt import MqttSettings, MqttTransport

__all__ = ["BrokerKind", "LocalBroker", "find_mosquitto"]

BrokerKind = Literal["mosquitto", "amqtt"]
_START_SECONDS = 20.0
_PBKDF2_ROUNDS = 101


def find_mosquitto() -> str | None:
    """The mosquitto binary, also where Debian puts it for root alone."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/local/sbin:/usr/sbin")


class LocalBroker:
    """A running broker; use it as a context manager.

    Args:
        folder: Private folder for configuration and log.
        users: Names that get a generated password each.
        kind: Which broker; by default mosquitto where there is one.
        port: Loopback port; 0 for a free one.
        persistence: Whether mosquitto keeps sessions and retained messages on disk.
        max_packet_bytes: A limit on packets, for tests.

    Raises:
        BrokerUnreachable: It did not come up; the message has the end of its log.
    """

    def __init__(
        self,
        folder: Path,
        users: Iterable[str] = ("fedkrso",),
        *,
        kind: BrokerKind | None = None,
        port: int = 0,
        persistence: bool = False,
        max_packet_bytes: int | None = None,
    ) -> None:
        self._mosquitto = find_mosquitto()
        self.kind: BrokerKind = kind or ("mosquitto" if self._mosquitto else "amqtt")
        if self.kind == "mosquitto" and self._mosquitto is None:
            raise TransportError("no mosquitto on this machine", remedy="apt-get install mosquitto, or use amqtt")
        self.passwords: Mapping[str, str] = {user: secrets.token_urlsafe(18) for user in users}
        self.folder = folder
        self.port = port or _free_port()
        self._persistence = persistence
        self._max_packet_bytes = max_packet_bytes
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._command = self._mosquitto_command() if self.kind == "mosquitto" else self._amqtt_command()
        self.start()

    @property
    def url(self) -> str:
        """Address for job and node files."""
        return f"mqtt://127.0.0.1:{self.port}"

    def settings(self, client_id: str, user: str | None = None) -> MqttSettings:
        """How a client of this broker connects."""
        user = user or next(iter(self.passwords))
        return MqttSettings(self.url, client_id, user, self.passwords[user])

    def start(self) -> None:
        """Start the process and wait until a client can log in."""
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent)
        deadline = time.monotonic() + _START_SECONDS
        while not self._accepts_login():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = (self.folder / "broker.log").read_text(errors="replace")[-500:].strip()
                raise BrokerUnreachable(f"{self.kind} did not come up: {tail or 'no log'}", place=self.url)

    def stop(self) -> None:
        """End it and wait."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self) -> int:
        """Wait until it ends by itself; its exit code."""
        assert self._process is not None
        return self._process.wait()

    def __enter__(self) -> LocalBroker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _accepts_login(self) -> bool:
        probe = MqttTransport(self.settings(f"probe-{secrets.token_hex(4)}"), Random(0))  # noqa: S311 - spreads reconnects
        probe.start(_ignore)
        try:
            probe.wait_connected(4.0)
        except TransportError:
            return False
        finally:
            probe.stop()
        return True

    def _mosquitto_command(self) -> list[str]:
        passwords = self.folder / "passwords"
        passwords.write_text("".join(f"{user}:{_mosquitto_hash(word)}\n" for user, word in self.passwords.items()))
        passwords.chmod(0o600)
        lines = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous false",
            f"password_file {passwords}",
            "max_inflight_messages 64",
            "max_queued_messages 4000",
            f"persistence {'true' if self._persistence else 'false'}",
        ]
        if self._persistence:
            lines += [f"persistence_location {self.folder}/", "autosave_interval 1", "autosave_on_changes true"]
        if self._max_packet_bytes is not None:
            lines.append(f"max_packet_size {self._max_packet_bytes}")
        if os.geteuid() == 0:
            # As root mosquitto would become the user `mosquitto`, who may not read this private folder.
            lines.append("user root")
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        return [str(self._mosquitto), "-c", str(config)]

    def _amqtt_command(self) -> list[str]:
        users = self.folder / "users.json"
        users.touch(mode=0o600)
        users.write_text("\n".join(f"{user}:{word}" for user, word in self.passwords.items()))
        return [sys.executable, "-m", "coordinator.amqtt_broker", str(self.port), str(users)]


def _ignore(event: TransportEvent) -> None:
    del event


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _mosquitto_hash(password: str) -> str:
    """mosquitto's `$7$` format: PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _PBKDF2_ROUNDS)
    return f"$7${_PBKDF2_ROUNDS}${b64encode(salt).decode()}${b64encode(digest).decode()}"
