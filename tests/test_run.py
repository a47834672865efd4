# SPDX-License-Identifier: Apache-2.0
"""Whole runs on real parts: broker, coordinator, agents and workers as processes, MiniLM's real weights, voice intents."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from coordinator.broker import LocalBroker, find_mosquitto
from examples.voice_intents.demo import job_text, node_text

HOMES = 2


class Cluster:
    """A run of two homes, small enough for a test."""

    def __init__(self, folder: Path, kind: str, *, base: str = "int8", method: str = "", rounds: int = 2) -> None:
        users = ["coordinator", *(f"home-{i}" for i in range(HOMES))]
        self.folder = folder
        self.broker = LocalBroker(folder / "broker", users, kind=kind)  # type: ignore[arg-type]
        self.log = (folder / "log").open("w+b")
        self.processes: list[subprocess.Popen[bytes]] = []
        for user, word in self.broker.passwords.items():
            (folder / user).write_text(word)
        text = job_text("t", self.broker.url, folder / "coordinator", rounds=rounds, homes=HOMES, seed=3, base=base, method=method)
        text = text.replace("interval_steps = 15", "interval_steps = 2").replace("\nsteps = 60", "\nsteps = 6")
        (folder / "job.toml").write_text(text.replace(f"homes = {HOMES} }}", f"homes = {HOMES}, examples = 60 }}"))

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from fedcore.command import main; main()", *map(str, arguments)]
        self.processes.append(subprocess.Popen(command, stdout=self.log, stderr=self.log))
        return self.processes[-1]

    def coordinator(self) -> subprocess.Popen[bytes]:
        return self.start("coordinator", "run", self.folder / "job.toml", "--runs", self.folder)

    def home(self, index: int) -> subprocess.Popen[bytes]:
        path, own = self.folder / f"home-{index}.toml", self.folder / f"node-{index}"
        text = node_text("t", self.broker.url, self.folder / f"home-{index}", own, index=index, homes=HOMES, seed=3, threads=1)
        path.write_text(text.replace("seed = 3 }", "seed = 3, examples = 40 }"))
        return self.start("client", "run", path)

    def output(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def summary(self, coordinator: subprocess.Popen[bytes], seconds: float = 200) -> dict[str, Any]:
        assert coordinator.wait(seconds) == 0, self.output()[-3000:]
        found: dict[str, Any] = json.loads((self.folder / "t" / "summary.json").read_text())
        return found

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.broker.stop()
        self.log.close()


def run(folder: Path, kind: str, **options: Any) -> dict[str, Any]:
    folder.mkdir()
    cluster = Cluster(folder, kind, **options)
    try:
        coordinator = cluster.coordinator()
        homes = [cluster.home(index) for index in range(HOMES)]
        summary = cluster.summary(coordinator)
        assert [home.wait(30) for home in homes] == [0, 0], cluster.output()[-3000:]
    finally:
        cluster.close()
    return summary


def check(summary: dict[str, Any], rounds: int = 2) -> str:
    assert [row["round"] for row in summary["rounds"]] == list(range(1, rounds + 1))
    for row in summary["rounds"]:
        assert row["participants"] == ["home-0", "home-1"] and row["uplink_bytes"] > 100_000
        assert 0 <= row["accuracy"] <= 1 and row["loss"] > 0
    digest: str = summary["final"]["digest"]
    for node in summary["nodes"].values():
        assert node["digest"] == digest and node["model_version"] == rounds
        assert 0 < node["peak_bytes"] <= node["budget_bytes"] and 0 < node["agent_peak_rss_bytes"] <= 40_000_000
    return digest


def needs_mosquitto() -> None:
    if find_mosquitto() is None:
        pytest.skip("no mosquitto binary on this machine (apt-get install mosquitto)")


def test_same_seed_same_digest_over_both_brokers(tmp_path: Path) -> None:
    needs_mosquitto()
    one = check(run(tmp_path / "one", "mosquitto"))
    two = check(run(tmp_path / "two", "amqtt"))
    assert one == two
    assert "<svg" in (tmp_path / "one" / "t" / "report.html").read_text()


@pytest.mark.parametrize("base", ["int8", "float32"])
def test_fresh_seeds_fold_to_the_same_base_everywhere(tmp_path: Path, base: str) -> None:
    check(run(tmp_path / "one", "amqtt", base=base, method='schedule = "fresh"\n', rounds=3), rounds=3)


def test_killed_coordinator_resumes_and_a_killed_home_comes_back_to_the_same_digest(tmp_path: Path) -> None:
    needs_mosquitto()
    undisturbed = check(run(tmp_path / "one", "mosquitto"))
    folder = tmp_path / "two"
    folder.mkdir()
    cluster = Cluster(folder, "mosquitto")
    try:
        coordinator = cluster.coordinator()
        homes = [cluster.home(index) for index in range(HOMES)]
        wait_for(cluster, "round 1 is open")
        homes[1].send_signal(signal.SIGKILL)
        homes[1].wait()
        cluster.home(1)
        wait_for(cluster, "round 1: update of")
        coordinator.send_signal(signal.SIGKILL)
        coordinator.wait()
        resumed = cluster.start("coordinator", "resume", "t", "--runs", folder)
        assert check(cluster.summary(resumed)) == undisturbed
    finally:
        cluster.close()


def wait_for(cluster: Cluster, text: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while text not in cluster.output():
        assert time.monotonic() < deadline, cluster.output()[-3000:]
        time.sleep(0.05)
