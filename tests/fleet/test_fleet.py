# SPDX-License-Identifier: Apache-2.0
"""Three runs at once on ten nodes: one is stopped, one is out of quorum, the third ends with the digest that it has
alone. The server is killed in the middle. Real broker with certificates and access rules, server, coordinators and
agents that sign; without workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cluster import needs_mosquitto
from workshop import program

from benchmarks.fleet_node import FleetSpec
from coordinator.provisioning.broker import LocalBroker
from fedcore.system.locks import owner_pid
from tests.fleet.place import Place
from tests.patience import ended

NODES = tuple(f"node-{index}" for index in range(10))
THIRD = NODES[7:]


class Crowd(Place):
    """A server with ten nodes, of which three take part in nothing but the run `third`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, NODES)
        self.nodes: list[subprocess.Popen[bytes]] = []

    def node_file(self, name: str) -> Path:
        path = self.folder / f"{name}.toml"
        accept = ["third"] if name in THIRD else ["first", "second"]
        path.write_text(
            f'node = "{name}"\nfleet = "homes"\nfolder = "{self.folder / name}"\nmemory_budget = "1 GiB"\n'
            f'[models]\nmodel = "{self.model}"\n[accept]\nruns = {json.dumps(accept)}\n'
            f'[data]\nsource = "none.csv"\n{self.broker.sections(name)}'
        )
        return path

    def start_nodes(self, *names: str, seconds: float = 0.3) -> None:
        files = [str(self.node_file(name)) for name in names]
        command = [sys.executable, "-m", "tests.fleet.light_nodes", str(seconds), *files]
        self.nodes.append(subprocess.Popen(command, stdout=self.log, stderr=self.log))

    def kill_node(self, name: str) -> None:
        pid = owner_pid(self.folder / name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def members(self, run: str) -> list[str]:
        return [row["node"] for row in self.ask("/api/nodes")["nodes"] if row["run"] == run]

    def close(self) -> None:
        for name in NODES:
            if (pid := owner_pid(self.folder / name)) is not None:
                os.kill(pid, signal.SIGKILL)
        for process in self.nodes:
            process.kill()
            process.wait()
        super().close()


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    needs_mosquitto()
    found = Crowd(tmp_path)
    yield found
    found.close()


def digest_alone(crowd: Crowd) -> str:
    """The run `third` as a run of its own, with the same three nodes, at another broker: a certificate's name is at one
    in one program only."""
    folder = crowd.folder / "alone"
    with LocalBroker(folder / "broker", ["coordinator", *THIRD], kind="mosquitto") as broker:
        return _digest_at(crowd, folder, broker)


def _digest_at(crowd: Crowd, folder: Path, broker: LocalBroker) -> str:
    text = (crowd.folder / "third.toml").read_text()
    (folder / "third.toml").write_text(f"{text}{broker.sections('coordinator')}")
    files = []
    for name in THIRD:
        path = folder / f"{name}.toml"
        path.write_text(
            f'node = "{name}"\nrun = "third"\nmodel_folder = "{crowd.model}"\nfolder = "{folder / name}"\n'
            f'[data]\nsource = "none.csv"\n{broker.sections(name)}'
        )
        files.append(str(path))
    spec = FleetSpec(node_files=files, train_seconds=0.0, counts=str(folder / "counts.json"))
    (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
    lead = program("coordinator", "run", folder / "third.toml", "--runs", folder / "runs", "--json")
    everybody = [
        subprocess.Popen(command, stdout=crowd.log, stderr=crowd.log)
        for command in (lead, [sys.executable, "-m", "benchmarks.fleet_node", str(folder / "spec.json")])
    ]
    assert [ended(one, everybody, said=crowd.output) for one in everybody] == [0, 0]
    digest: str = json.loads((folder / "runs" / "third" / "summary.json").read_text())["final"]["digest"]
    return digest


@pytest.mark.slow
def test_three_runs_at_once_one_stopped_one_out_of_quorum_and_the_third_as_alone(crowd: Crowd) -> None:
    crowd.serve()
    crowd.start_nodes(*NODES)
    for name, rounds in (("first", 500), ("second", 500), ("third", 4)):
        crowd.say("submit", crowd.job(name, rounds=rounds, min_nodes=3, quorum=3))
    crowd.until(lambda: len(crowd.members("first")) + len(crowd.members("second")) == 7)
    crowd.until(lambda: crowd.members("third") == list(THIRD))
    crowd.until(lambda: all(row["phase"] == "open" for row in crowd.rows().values()))
    assert {row["state"] for row in crowd.rows().values()} == {"running"}
    assert min(len(crowd.members("first")), len(crowd.members("second"))) == 3

    # The server is killed: the runs and their nodes go on, and the next server finds both.
    before = {run: (crowd.pid(run), crowd.members(run)) for run in ("first", "second", "third")}
    crowd.kill()
    crowd.serve()
    assert {run: (crowd.pid(run), crowd.members(run)) for run in ("first", "second")} == {
        run: before[run] for run in ("first", "second")
    }

    # One run loses nodes: it waits, out of quorum, and takes nobody from a run that needs them.
    short = max(("first", "second"), key=lambda run: len(crowd.members(run)))
    other = "second" if short == "first" else "first"
    victims, needed = crowd.members(short)[:2], crowd.members(other)
    for name in victims:
        crowd.kill_node(name)
    crowd.until(lambda: crowd.rows()[short]["words"] == "out of quorum: 2 of 3 nodes are there")
    assert crowd.members(other) == needed

    # The third ends by itself, whatever happens to the others, with the digest that it has alone.
    crowd.until(lambda: crowd.rows()["third"]["state"] == "finished")
    third = crowd.rows()["third"]
    assert third["rounds_done"] == 4 and third["digest"] == digest_alone(crowd)
    assert crowd.members("third") == []

    # One is stopped: its nodes are free at once, and go where they are needed.
    rounds = crowd.rows()[short]["rounds_done"]
    crowd.say("stop", other)
    crowd.until(lambda: crowd.rows()[other]["state"] == "stopped")
    crowd.until(lambda: crowd.rows()[short]["rounds_done"] > rounds)
    assert set(needed) <= set(crowd.members(short))

    # A node that starts again comes back into the run it was in.
    crowd.start_nodes(victims[0])
    crowd.until(lambda: victims[0] in crowd.members(short))
    assert crowd.rows()["third"]["state"] == "finished" and crowd.rows()[other]["state"] == "stopped"
