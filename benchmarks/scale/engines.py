# SPDX-License-Identifier: Apache-2.0
"""The engines of a run with very many nodes: one of each, or several processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from coordinator.provisioning.broker import LocalBroker
from tests.natscluster import NatsCluster
from tests.postgres import Postgres
from tests.s3 import S3

__all__ = ["Engines", "One", "Several"]

_AGGREGATION = "\n[aggregation]\npieces = {pieces}\nleast_numbers = 0\n"


def _of_quality(sections: str, qos: int) -> str:
    """A user's sections, with MQTT's quality of service."""
    return sections.replace("[broker]\n", f"[broker]\nqos = {qos}\n")


class Engines(Protocol):
    """What a run needs beside coordinator and nodes."""

    def sections(self, user: str) -> str:
        """What a user's file says of them."""
        ...

    def processes(self) -> dict[str, int]:
        """Process numbers by name."""
        ...

    def stop(self) -> None:
        """End all of them."""
        ...


class One:
    """One broker; the ledger is a file, and the coordinator does all else.

    Args:
        folder: For the broker's files.
        users: Their names.
        qos: Of all messages.
        tls: mosquitto with TLS and certificates, messages signed, and an S3 server for states; else a nats-server.
        uploads: Whether updates go to the S3 server too.
    """

    def __init__(
        self, folder: Path, users: Sequence[str], qos: int = 1, *, tls: bool = False, uploads: bool = False
    ) -> None:
        self._qos, self._uploads = qos, uploads
        self._broker = LocalBroker(folder / "broker", users, kind="mosquitto" if tls else "nats", tls=tls, run="fleet")
        self._s3 = S3() if tls else None

    def sections(self, user: str) -> str:
        """See `Engines`."""
        broker = _of_quality(self._broker.sections(user), self._qos)
        if self._s3 is None:
            return broker
        words = self._s3.section if user == "coordinator" else self._s3.allowed
        return broker + words(uploads=self._uploads)

    def processes(self) -> dict[str, int]:
        """See `Engines`."""
        found = {"broker": self._broker.pid}
        if self._s3 is not None and self._s3.server is not None:
            found["s3"] = self._s3.server.pid
        return found

    def stop(self) -> None:
        """See `Engines`."""
        self._broker.stop()
        if self._s3 is not None:
            self._s3.__exit__(None, None, None)


class Several:
    """Three nats-servers, PostgreSQL, an S3 server, and workers.

    Args:
        folder: The coordinator's folder of runs, and for logs.
        users: Their names, the coordinator's first.
        workers: How many.
        replicas: On how many nats-servers sessions and what is retained lie.
        qos: Of all messages.
        uploads: Whether updates go to the S3 server too.
    """

    def __init__(
        self,
        folder: Path,
        users: Sequence[str],
        workers: int,
        replicas: int = 3,
        qos: int = 1,
        *,
        uploads: bool = False,
    ) -> None:
        self._folder, self._count, self._qos, self._uploads = folder, workers, qos, uploads
        self.postgres, self.s3 = Postgres(), S3()
        self.nats = NatsCluster(folder / "nats", users, replicas)
        self.workers: list[subprocess.Popen[bytes]] = []
        for _ in range(workers):
            self.start_worker()

    def start_worker(self) -> None:
        """One more."""
        words = ["-c", "from fedcore.command import main; main()", "coordinator", "worker", self.postgres.url]
        words += ["--password-file", str(self.postgres.password_file), "--runs", str(self._folder)]
        with (self._folder / "workers.log").open("ab") as log:
            self.workers.append(subprocess.Popen([sys.executable, *words], stdout=log, stderr=log))

    def sections(self, user: str) -> str:
        """See `Engines`."""
        broker = _of_quality(self.nats.sections(user), self._qos)
        if user != "coordinator":
            return broker + self.s3.allowed(uploads=self._uploads)
        broker += self.postgres.section + self.s3.section(uploads=self._uploads)
        return broker + _AGGREGATION.format(pieces=2 * self._count)

    def processes(self) -> dict[str, int]:
        """See `Engines`."""
        assert self.s3.server is not None and self.postgres.server is not None
        found = {f"nats {number}": process.pid for number, process in enumerate(self.nats.processes) if process}
        found |= {f"worker {number}": process.pid for number, process in enumerate(self.workers)}
        return found | {"s3": self.s3.server.pid, "postgres": self.postgres.server.pid}

    def stop(self) -> None:
        """See `Engines`."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.nats.stop()
        self.s3.__exit__(None, None, None)
        self.postgres.__exit__(None, None, None)
