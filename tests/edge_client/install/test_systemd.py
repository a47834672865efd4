# SPDX-License-Identifier: Apache-2.0
"""The installed service under a real systemd: started, trained with behind its walls, watched, changed, taken away."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, needs_mosquitto
from nest import Nest, needs_nest

from examples.voice_intents.data import home

pytestmark = [pytest.mark.chaos, needs_nest]


@pytest.fixture
def nest(tmp_path: Path) -> Iterator[Nest]:
    needs_mosquitto()
    made = Nest(tmp_path)
    yield made
    made.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "run").mkdir()
    made = Cluster(tmp_path / "run", "mosquitto")
    yield made
    made.close()


def install(nest: Nest, cluster: Cluster, model: Path, *more: str) -> str:
    data = cluster.folder / "mine.csv"
    if not data.exists():
        with data.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["utterance", "intent"])
            writer.writerows((row["text"], row["label"]) for row in home(index=0, homes=2, seed=3, examples=40))
    assert cluster.broker.yard is not None
    kit = ["--from", cluster.broker.yard.client("home-0"), "--run", "t", "--model", model]
    return nest.fedkrso("client", "install", *kit, "--data", data, "--text", "utterance", "--label", "intent", *more).stdout


def test_a_node_takes_part_in_a_run_as_a_service_behind_its_walls(nest: Nest, cluster: Cluster, minilm_folder: Path) -> None:
    said = install(nest, cluster, minilm_folder, "--budget", "1500MiB")
    assert said.splitlines()[-1] == "node home-0 runs: fedkrso client status"
    assert (nest.shown("ActiveState"), nest.shown("Type"), nest.shown("NRestarts")) == ("active", "notify", "0")
    coordinator = cluster.coordinator()
    other = cluster.home(1)
    summary = cluster.summary(coordinator)
    assert other.wait(30) == 0
    assert [row["participants"] for row in summary["rounds"]] == [["home-0", "home-1"]] * 2
    assert {node["digest"] for node in summary["nodes"].values()} == {summary["final"]["digest"]}
    nest.wait("ActiveState", "active")
    status = json.loads(nest.fedkrso("client", "status", "--json", "--lines", "100").stdout)
    assert status["state"] == "active (running)" and status["said"].startswith("finished") and status["restarts"] == 0
    assert any("round 2 trained on 40 examples" in line for line in status["lines"])
    assert "round 2 trained" in nest.fedkrso("client", "logs").stdout
    # Who it is, and what it sees of the device.
    pid = nest.shown("MainPID")
    facts = nest.run("cat", f"/proc/{pid}/status").stdout
    assert "NoNewPrivs:\t1" in facts and "CapEff:\t0000000000000000" in facts and "Seccomp:\t2" in facts and "Uid:\t0" not in facts
    assert nest.shown("OOMScoreAdjust") == "-200"
    inside = ["nsenter", "--target", pid, "--mount", "--", "find"]
    seen = nest.run(*inside, "/tmp", "/root", "-maxdepth", "1", "-mindepth", "1", "!", "-user", "fedkrso").stdout.split()
    assert set(seen) <= {f"/tmp/{cluster.folder.parts[2]}", "/root/.pyenv"}, "of homes and temporary files only what it needs"
    assert nest.run(*inside, str(cluster.folder), "-type", "f").stdout.split() == [str(cluster.folder / "mine.csv")]
    assert install(nest, cluster, minilm_folder) == "nothing to do: it is installed like this already\n"


def test_a_changed_budget_starts_the_service_anew_and_uninstalling_ends_it(nest: Nest, cluster: Cluster, minilm_folder: Path) -> None:
    install(nest, cluster, minilm_folder, "--budget", "1500MiB")
    before = nest.shown("MainPID")
    assert "MemoryHigh=1500M" in nest.run("systemctl", "cat", "fedkrso-client").stdout
    install(nest, cluster, minilm_folder, "--budget", "1600MiB")
    assert nest.shown("MainPID") not in (before, "0") and nest.shown("MemoryHigh") == str(1600 * 2**20)
    nest.run("systemctl", "reload", "fedkrso-client")
    nest.wait("StatusText", "idle: memory budget is now 1,600 MiB")
    nest.fedkrso("client", "uninstall")
    gone = nest.fedkrso("client", "status", check=False)
    assert gone.returncode == 2 and "nothing is installed" in gone.stderr
    assert nest.run("ls", "/etc/fedkrso").stdout.split() == [
        "authority.pem", "certificate.key", "certificate.pem", "node.toml", "signing.key",
    ]  # fmt: skip
    nest.fedkrso("client", "uninstall", "--purge", "--yes")
    assert nest.run("ls", "/etc/fedkrso", "/var/lib/fedkrso", check=False).returncode == 2
    assert nest.run("getent", "passwd", "fedkrso", check=False).returncode == 2


def test_an_agent_that_hangs_is_started_anew_and_a_wrong_file_is_not(nest: Nest, cluster: Cluster, minilm_folder: Path) -> None:
    install(nest, cluster, minilm_folder, "--budget", "1500MiB")
    nest.run("mkdir", "-p", "/run/systemd/system/fedkrso-client.service.d")
    quick = "[Service]\\nWatchdogSec=2\\nTimeoutAbortSec=1\\nRestartSec=1\\n"
    nest.run("sh", "-c", f"printf '{quick}' > /run/systemd/system/fedkrso-client.service.d/quick.conf")
    nest.run("systemctl", "daemon-reload")
    nest.run("systemctl", "restart", "fedkrso-client")
    time.sleep(5)
    assert nest.shown("NRestarts") == "0", "an agent that turns is left alone"
    nest.run("kill", f"-{int(signal.SIGSTOP)}", nest.shown("MainPID"))
    nest.wait("NRestarts", "1")
    nest.wait("ActiveState", "active")
    nest.run("sh", "-c", "echo 'nonsense = 1' > /etc/fedkrso/node.toml")
    assert nest.run("systemctl", "restart", "fedkrso-client", check=False).returncode != 0
    nest.wait("ActiveState", "failed")
    assert (nest.shown("ExecMainStatus"), nest.shown("NRestarts")) == ("2", "0")
    status = nest.fedkrso("client", "status", check=False)
    assert status.returncode == 1 and "ended with code 2" in status.stdout and "unknown key 'nonsense'" in status.stdout


def test_what_is_left_outside() -> None:
    """Nothing of the nests."""
    assert not [path for path in Path("/sys/fs/cgroup").glob("**/fedkrso-nest-*") if path.name.endswith(str(os.getpid()))]
    assert not Path("/etc/fedkrso").exists() or Path("/run/systemd/system").is_dir()
