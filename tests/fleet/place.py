# SPDX-License-Identifier: Apache-2.0
"""A server as a process, its broker, and commands to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from workshop import program

from coordinator.provisioning.broker import LocalBroker
from coordinator.provisioning.fleets import make_fleet
from coordinator.server.asking import Asked
from fedcore.command import command
from fedcore.errors import FedkrsoError
from fedcore.system.locks import owner_pid
from tests.fleet.light_model import LABELS, make_light_model
from tests.patience import until

__all__ = ["Place"]


class Place:
    """A server of a test, and commands to it.

    Args:
        folder: Its own.
        users: Nodes. Where there are some, the broker knows everybody by certificate, messages are signed, and access
            rules hold; without, it has passwords.
        settings: Other keys of the server file.
    """

    def __init__(self, folder: Path, users: tuple[str, ...] = (), **settings: object) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.model, self.schema = make_light_model(folder)
        everybody, tls = ["coordinator", *users], bool(users)
        self.broker = LocalBroker(folder / "broker", everybody, kind="mosquitto", tls=tls, run="homes")
        given = {"fleet": "homes", "runs": str(self.runs), "address": "127.0.0.1:0", **settings}
        if self.broker.yard is not None:
            now = datetime.now(timezone.utc)
            make_fleet(self.broker.yard.root, "homes", 3, now=now)
            self.broker.reload()
            given |= {"certificates": str(self.broker.yard.client("coordinator") / "certificates"), "at_once": 3}
        lines = [f"{key} = {json.dumps(value)}" for key, value in given.items()]
        (folder / "server.toml").write_text("\n".join([*lines, self.broker.sections("coordinator")]))
        self.log = (folder / "log").open("w+b")
        self.server: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        self.server = subprocess.Popen(
            program("server", "run", self.folder / "server.toml"), stdout=self.log, stderr=self.log
        )
        self.until(lambda: (self.runs / ".server" / "url").exists() and self.try_list() is not None)

    def kill(self) -> None:
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def say(self, *words: object) -> str:
        done = CliRunner().invoke(command(), ["server", *map(str, words), "--runs", str(self.runs)])
        if isinstance(done.exception, FedkrsoError):
            raise done.exception
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    def ask(self, path: str) -> Any:
        return Asked(self.runs).get(path)

    def try_list(self) -> dict[str, Any] | None:
        try:
            return {row["run"]: row for row in Asked(self.runs).get("/api/runs")["runs"]}
        except FedkrsoError:
            return None

    def rows(self) -> dict[str, Any]:
        found = self.try_list()
        assert found is not None, self.output()
        return found

    def pid(self, run: str) -> int | None:
        return owner_pid(self.runs / run)

    def job(self, run: str, **rounds: object) -> Path:
        path = self.folder / f"{run}.toml"
        given = {"rounds": 2, "min_nodes": 2, "quorum": 2, "deadline_seconds": 300, "chunk_bytes": 1024, **rounds}
        path.write_text(
            f'run = "{run}"\nseed = 3\n[model]\nfolder = "{self.model}"\nschema_file = "{self.schema}"\n'
            f'[task]\nkind = "text-classification"\nlabels = {json.dumps(LABELS)}\n[head]\nstart = "random"\n'
            '[method]\nname = "fedkrso"\nprojection = "signs"\nrank = 4\nnum_seeds = 2\n[round]\n'
            + "".join(f"{key} = {value}\n" for key, value in given.items())
        )
        return path

    def until(self, done: Any) -> None:
        children = [pid for pid in (self.pid(path.name) for path in self.runs.glob("[a-z]*")) if pid]
        until(done, [one for one in (self.server, *children) if one is not None], said=self.output)

    def output(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        if self.server is not None and self.server.poll() is None:
            self.kill()
        for path in self.runs.glob("[a-z]*"):
            if (pid := self.pid(path.name)) is not None:
                os.kill(pid, signal.SIGKILL)
        self.broker.stop()
        self.log.close()
