# SPDX-License-Identifier: Apache-2.0
"""A server whose runs, and which itself, are killed: real processes, a real broker, no nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cluster import needs_mosquitto
from light_model import LABELS, make_light_model
from workshop import program

from coordinator.provisioning.broker import LocalBroker
from coordinator.server.asking import Asked
from fedcore.command import command
from fedcore.errors import FedkrsoError
from fedcore.system.locks import owner_pid
from tests.patience import until


class Place:
    """A server of a test, and commands to it."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.model, self.schema = make_light_model(folder)
        self.broker = LocalBroker(folder / "broker", ["coordinator"], kind="mosquitto")
        given = {"fleet": "homes", "runs": str(self.runs), "address": "127.0.0.1:0", **settings}
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


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    needs_mosquitto()
    found = Place(tmp_path)
    yield found
    found.close()


def test_runs_outlive_the_server_and_what_dies_is_begun_again(place: Place) -> None:
    place.serve()
    assert place.say("submit", place.job("a")).startswith("a is running")
    place.until(lambda: place.rows()["a"]["words"] == "waits for nodes: 0 of 2 are there")
    first = place.pid("a")
    assert first is not None

    # The server is killed: its run goes on, and the next server begins no second one.
    place.kill()
    place.serve()
    assert place.pid("a") == first and place.rows()["a"]["state"] == "running"
    assert "a still runs, and goes on" in place.output()

    # The run is killed: it is begun again, by a server that did not start it.
    os.kill(first, signal.SIGKILL)
    place.until(lambda: place.pid("a") not in (None, first))
    assert "without a last word" in place.output()

    # Stopped: in order, with a last word; and a server that comes back leaves it so.
    assert place.say("stop", "a") == "a is being stopped\n"
    place.until(lambda: place.rows()["a"]["state"] == "stopped")
    assert place.pid("a") is None and (place.runs / "a" / "summary.json").exists()
    assert "unsigned messages" in place.say("log", "a")


@pytest.mark.slow
def test_what_cannot_run_has_failed_with_its_last_line(place: Place) -> None:
    place.serve()
    job = place.job("a")
    place.schema.rename(place.folder / "elsewhere.json")
    place.say("submit", job)
    place.until(lambda: place.rows()["a"]["state"] == "failed")
    assert "schema.json" in place.rows()["a"]["words"]
