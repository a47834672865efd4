# SPDX-License-Identifier: Apache-2.0
"""The installed service under a real systemd: started, trained with behind its walls, watched, changed, taken away."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest
from cluster import Cluster

from examples.voice_intents.data import home
from tests.edge_client.install.booted import BootedDevice, needs_booting

pytestmark = [pytest.mark.chaos, needs_booting]


def install(device: BootedDevice, cluster: Cluster, model: Path, *more: str) -> str:
    data = cluster.folder / "mine.csv"
    if not data.exists():
        with data.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["utterance", "intent"])
            writer.writerows((row["text"], row["label"]) for row in home(index=0, homes=2, seed=3, examples=40))
    assert cluster.broker.yard is not None
    kit = ["--from", cluster.broker.yard.client("home-0"), "--run", "t", "--model", model]
    return device.fedkrso(
        "client", "install", *kit, "--data", data, "--text", "utterance", "--label", "intent", *more
    ).stdout


def test_a_node_takes_part_in_a_run_as_a_service_behind_its_walls(
    device: BootedDevice, cluster: Cluster, minilm_folder: Path
) -> None:
    said = install(device, cluster, minilm_folder, "--budget", "1500MiB")
    assert said.splitlines()[-1] == "node home-0 runs: fedkrso client status"
    assert (device.shown("ActiveState"), device.shown("Type"), device.shown("NRestarts")) == ("active", "notify", "0")
    coordinator = cluster.coordinator()
    other = cluster.home(1)
    summary = cluster.summary(coordinator)
    assert other.wait(120) == 0
    assert [row["participants"] for row in summary["rounds"]] == [["home-0", "home-1"]] * 2
    assert {node["digest"] for node in summary["nodes"].values()} == {summary["final"]["digest"]}
    device.wait("ActiveState", "active")
    status = json.loads(device.fedkrso("client", "status", "--json", "--lines", "100").stdout)
    assert status["state"] == "active (running)" and status["said"].startswith("finished") and status["restarts"] == 0
    assert any("round 2 trained" in line and "from 40 examples" in line for line in status["lines"])
    assert "round 2 trained" in device.fedkrso("client", "logs").stdout
    # Who it is, and what it sees of the device.
    pid = device.shown("MainPID")
    facts = device.run("cat", f"/proc/{pid}/status").stdout
    assert (
        "NoNewPrivs:\t1" in facts
        and "CapEff:\t0000000000000000" in facts
        and "Seccomp:\t2" in facts
        and "Uid:\t0" not in facts
    )
    assert device.shown("OOMScoreAdjust") == "-200"
    inside = ["nsenter", "--target", pid, "--mount", "--", "find"]
    seen = device.run(
        *inside, "/tmp", "/root", "-maxdepth", "1", "-mindepth", "1", "!", "-user", "fedkrso"
    ).stdout.split()
    assert set(seen) <= {f"/tmp/{cluster.folder.parts[2]}", "/root/.pyenv"}, (
        "of homes and temporary files only what it needs"
    )
    assert device.run(*inside, str(cluster.folder), "-type", "f").stdout.split() == [str(cluster.folder / "mine.csv")]
    assert install(device, cluster, minilm_folder) == "nothing to do: it is installed like this already\n"


def test_a_changed_budget_starts_the_service_anew_and_uninstalling_ends_it(
    device: BootedDevice, cluster: Cluster, minilm_folder: Path
) -> None:
    install(device, cluster, minilm_folder, "--budget", "1500MiB")
    before = device.shown("MainPID")
    assert "MemoryHigh=1500M" in device.run("systemctl", "cat", "fedkrso-client").stdout
    install(device, cluster, minilm_folder, "--budget", "1600MiB")
    assert device.shown("MainPID") not in (before, "0") and device.shown("MemoryHigh") == str(1600 * 2**20)
    device.run("systemctl", "reload", "fedkrso-client")
    device.wait("StatusText", "idle: memory budget is now 1,600 MiB")
    device.fedkrso("client", "uninstall")
    gone = device.fedkrso("client", "status", check=False)
    assert gone.returncode == 2 and "nothing is installed" in gone.stderr
    assert device.run("ls", "/etc/fedkrso").stdout.split() == [
        "authority.pem", "certificate.key", "certificate.pem", "node.toml", "signing.key",
    ]  # fmt: skip
    device.fedkrso("client", "uninstall", "--purge", "--yes")
    assert device.run("ls", "/etc/fedkrso", "/var/lib/fedkrso", check=False).returncode == 2
    assert device.run("getent", "passwd", "fedkrso", check=False).returncode == 2


def test_an_agent_that_hangs_is_started_anew_and_a_wrong_file_is_not(
    device: BootedDevice, cluster: Cluster, minilm_folder: Path
) -> None:
    install(device, cluster, minilm_folder, "--budget", "1500MiB")
    device.run("mkdir", "-p", "/run/systemd/system/fedkrso-client.service.d")
    quick = "[Service]\\nWatchdogSec=2\\nTimeoutAbortSec=1\\nRestartSec=1\\n"
    device.run("sh", "-c", f"printf '{quick}' > /run/systemd/system/fedkrso-client.service.d/quick.conf")
    device.run("systemctl", "daemon-reload")
    device.run("systemctl", "restart", "fedkrso-client")
    time.sleep(5)
    assert device.shown("NRestarts") == "0", "an agent that turns is left alone"
    device.run("kill", f"-{int(signal.SIGSTOP)}", device.shown("MainPID"))
    device.wait("NRestarts", "1")
    device.wait("ActiveState", "active")
    device.run("sh", "-c", "echo 'nonsense = 1' > /etc/fedkrso/node.toml")
    assert device.run("systemctl", "restart", "fedkrso-client", check=False).returncode != 0
    device.wait("ActiveState", "failed")
    assert (device.shown("ExecMainStatus"), device.shown("NRestarts")) == ("2", "0")
    status = device.fedkrso("client", "status", check=False)
    assert status.returncode == 1 and "ended with code 2" in status.stdout and "unknown key 'nonsense'" in status.stdout


def test_what_is_left_outside() -> None:
    """Nothing of the nests."""
    assert not [
        path for path in Path("/sys/fs/cgroup").glob("**/fedkrso-nest-*") if path.name.endswith(str(os.getpid()))
    ]
    assert not Path("/etc/fedkrso").exists() or Path("/run/systemd/system").is_dir()
