# SPDX-License-Identifier: Apache-2.0
"""What a newcomer types wrong: one clear line, a documented exit code, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from coordinator.provisioning.broker import LocalBroker
from fedcore.command import command

JOB = """
run = "r"
[model]
folder = "{model}"
[task]
kind = "text-classification"
labels = ["a", "b"]
[broker]
url = "{url}"
insecure = true
username = "fedkrso"
password = "wrong"
"""
NODE = """
node = "n"
run = "r"
model_folder = "{model}"
memory_budget = "{budget}"
folder = "{folder}"
[data]
source = "{data}"
[broker]
url = "mqtt://127.0.0.1:9"
insecure = true
"""


def fedkrso(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from fedcore.command import main; main()", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=cwd, env={**os.environ, **environment}
    )


def test_the_version_is_the_installed_one() -> None:
    assert fedkrso("--version").stdout.split() == ["fedkrso", metadata.version("fedkrso")]


def refused(code: int, match: str, *arguments: object, cwd: Path | None = None) -> str:
    done = fedkrso(*arguments, cwd=cwd)
    assert done.returncode == code, done.stderr
    assert match in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    return done.stdout


def job(tmp_path: Path, minilm_folder: Path, url: str = "mqtt://127.0.0.1:9", extra: str = "") -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(model=minilm_folder, url=url) + extra)
    return path


def test_help_teaches_and_lists_exit_codes() -> None:
    done = fedkrso("--help")
    assert done.returncode == 0 and "coordinator" in done.stdout and "Exit codes" in done.stdout
    assert "NODE.toml" in fedkrso("client", "run", "--help").stdout


def test_h_helps_and_a_command_that_is_not_there_is_answered_with_those_that_are() -> None:
    runner, whole = CliRunner(), command()
    assert "Exit codes" in runner.invoke(whole, ["-h"]).output
    # In a process of its own: click keeps a command's help option as it was when it was first asked, perhaps alone.
    words = [sys.executable, "-m", "fedkrso", "data", "check", "-h"]
    assert "--label" in subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for wrong, meant in (
        (["coordinatr"], "'fedkrso coordinator'"),
        (["coordinator", "rnu"], "'fedkrso coordinator run'"),
        (["resume"], "'fedkrso coordinator resume'"),
    ):
        done = runner.invoke(whole, wrong)
        assert done.exit_code == 2 and f"Did you mean {meant}" in done.output, done.output
    assert "Did you mean" not in runner.invoke(whole, ["xyzzy"]).output


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ("[method]\nname = 'fedkrso'\nrnak = 4\n", "method: unknown key 'rnak' (did you mean 'rank'?)"),
        ("[method]\nname = 'fedkrso'\nrank = 'four'\n", "method.rank"),
        (
            "[method]\nname = 'fedkrso'\nsteps = 45\n",
            "method.steps: 45 steps are not a whole number of intervals of 10 (use 40)",
        ),
        ("[round]\nquorum = 3\ncohort = 2\n", "a quorum of 3 cannot come from 2 nodes"),
        ("[methd]\n", "unknown key 'methd' (did you mean 'method'?)"),
        ("= 3\n", "not TOML"),
    ],
)
def test_wrong_job_files(tmp_path: Path, minilm_folder: Path, extra: str, match: str) -> None:
    refused(2, match, "coordinator", "run", job(tmp_path, minilm_folder, extra=extra), "--check")


@pytest.mark.parametrize(
    ("middle", "match"), [("2.5", "task.middle: text-classification has no scale"), ("nan", "task.middle")]
)
def test_a_middle_needs_a_scale(tmp_path: Path, minilm_folder: Path, middle: str, match: str) -> None:
    path = job(tmp_path, minilm_folder)
    path.write_text(path.read_text().replace("labels =", f"middle = {middle}\nlabels ="))
    refused(2, match, "coordinator", "run", path, "--check")


def test_job_file_that_is_not_there_and_model_that_is_not_there(tmp_path: Path) -> None:
    refused(2, "no such file", "coordinator", "run", tmp_path / "no.toml")
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(model=tmp_path / "nowhere", url="mqtt://127.0.0.1:9"))
    refused(4, "no such model folder", "coordinator", "run", path)


def test_model_folder_without_weights(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert"}')
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(model=model, url="mqtt://127.0.0.1:9"))
    refused(4, "the model folder has no weights", "coordinator", "run", path, "--runs", tmp_path / "runs")


@pytest.mark.parametrize(
    ("budget", "code", "match"),
    [("2 Gb ram", 2, "is not a size"), ("10 MiB", 8, "less than the 256 MiB"), ("9000 GiB", 8, "that MemTotal allows")],
)
def test_wrong_budgets(tmp_path: Path, minilm_folder: Path, budget: str, code: int, match: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(NODE.format(model=minilm_folder, budget=budget, folder=tmp_path / "n", data="x.csv"))
    refused(code, match, "client", "run", path)


def test_wrong_password_and_unreachable_broker(tmp_path: Path, minilm_folder: Path) -> None:
    with LocalBroker(tmp_path / "broker") as broker:
        path, said = job(tmp_path, minilm_folder, broker.url), "check broker.username and broker.password"
        refused(5, said, "coordinator", "run", path, "--runs", tmp_path / "runs")
    assert not list((tmp_path / "runs" / "r").glob("**/describe.log")), "before the model is looked at"
    node = tmp_path / "node.toml"
    node.write_text(NODE.format(model=minilm_folder, budget="1 GiB", folder=tmp_path / "n", data="x.csv"))
    said = refused(5, "is the broker running there?", "client", "run", node)
    assert "n: connecting to mqtt://127.0.0.1:9, for at most 20 s" in said


def test_unknown_run_is_refused_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "runs" / "known").mkdir(parents=True)
    (tmp_path / "runs" / "known" / "job.json").write_text("{}")
    refused(10, "no run 'unknown' (runs: known)", "coordinator", "resume", "unknown", "--runs", tmp_path / "runs")


def test_doctor_checks_a_real_broker_and_a_real_gradient(tmp_path: Path) -> None:
    with LocalBroker(tmp_path / "broker") as broker:
        login = ("--username", "fedkrso", "--password", broker.passwords["fedkrso"])
        done = fedkrso("doctor", "--json", "--again", "--broker", broker.url, *login, XDG_CACHE_HOME=str(tmp_path))
    found = {check["check"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0 and set(found["route"]) == {"group", "check", "state", "found", "remedy"}
    assert (
        found["float32 on cpu"]["state"] == "ok"
        and "ms" in found["float32 on cpu"]["found"]
        and " on cpu: " in found["route"]["found"]
    )
    assert (
        found["broker"]["state"] == "warning"
        and "MQTT" in found["broker"]["found"]
        and "INSECURE" in found["broker"]["found"]
    )
