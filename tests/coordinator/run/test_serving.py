# SPDX-License-Identifier: Apache-2.0
"""A real coordinator without nodes: what its run's folder says while it runs, when it is interrupted, and when it
fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from made_runs import fedkrso

from benchmarks.fleet_contents import schema_of
from coordinator.provisioning.broker import LocalBroker
from coordinator.reports.runs import RunRecord, read_run
from fedcore.config.sections import TaskSection
from fedcore.errors import FedkrsoError
from fedcore.weights.checkpoint import Checkpoint
from fedcore.worker.messages import Described

LABELS = ("a", "b")
JOB = """
run = "r"
[model]
folder = "{model}"
schema_file = "{schema}"
[task]
kind = "text-classification"
labels = ["a", "b"]
[round]
min_nodes = 2
quorum = 2
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, minilm_folder: Path) -> Iterator[Start]:
    schema = tmp_path / "schema.json"
    task = TaskSection(kind="text-classification", labels=LABELS)
    schema.write_bytes(msgspec.json.encode(Described(schema_of(Checkpoint(minilm_folder), len(LABELS)), task)))
    processes: list[subprocess.Popen[str]] = []

    def begin(broker: str, *flags: str) -> subprocess.Popen[str]:
        job = tmp_path / "job.toml"
        job.write_text(JOB.format(model=minilm_folder, schema=schema) + broker)
        command = [sys.executable, "-c", "from fedcore.command import main; main()", "coordinator", "run", str(job)]
        processes.append(
            subprocess.Popen(
                [*command, "--runs", str(tmp_path), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def until(folder: Path, holds: Callable[[RunRecord], bool], seconds: float = 120.0) -> RunRecord:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            record = read_run(folder)
            if holds(record):
                return record
        except FedkrsoError:
            # Before its first file is there.
            pass
        time.sleep(0.05)
    raise AssertionError(f"never: {folder}")


def test_a_run_is_served_once_and_an_interruption_is_its_last_word(tmp_path: Path, start: Start) -> None:
    with LocalBroker(tmp_path / "broker") as broker:
        process = start(broker.sections("fedkrso"), "--log-format", "json")
        record = until(tmp_path / "r", lambda record: record.view.phase == "waiting")
        assert record.state == "running" and record.seen is not None and record.seen.writer.pid == process.pid
        said = fedkrso("status", "--runs", tmp_path).stdout
        assert said.startswith("r  fedkrso  running") and "round 1 of 6 is next; waiting for nodes" in said
        second = fedkrso("coordinator", "resume", "r", "--runs", tmp_path)
        assert second.returncode == 10
        assert f"r: its coordinator runs already, as process {process.pid} (stop that one first)" in second.stderr
        assert read_run(tmp_path / "r").state == "running", "the refused one wrote nothing"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in errors
    assert f"interrupted: what nodes have sent is kept in {tmp_path / 'r'}; go on with: fedkrso coordinator" in errors
    assert read_run(tmp_path / "r").why.startswith(
        "its coordinator was interrupted; to go on: fedkrso coordinator resume r --runs "
    )
    assert [json.loads(line)["event"] for line in output.splitlines()] == ["security"]


def test_the_error_that_ended_a_run_is_in_its_folder_and_in_its_log(tmp_path: Path, start: Start) -> None:
    with LocalBroker(tmp_path / "broker") as broker:
        wrong = f'[broker]\nurl = "{broker.url}"\ninsecure = true\nusername = "fedkrso"\npassword = "wrong"\n'
        process = start(wrong, "--log-format", "json")
        output, errors = process.communicate(timeout=120)
    assert (
        process.returncode == 5
        and errors.startswith("error: ")
        and "check broker.username and broker.password" in errors
    )
    last = json.loads(output.splitlines()[-1])
    assert (last["event"], last["level"], last["exit_code"], last["run"]) == ("failed", "error", 5, "r")
    record = read_run(tmp_path / "r")
    assert (record.state, f"error: {record.why}\n") == ("stopped", errors) and last["message"] == record.why
    assert fedkrso("status", "--runs", tmp_path).stdout.startswith("r  fedkrso  stopped: 127.0.0.1:")
