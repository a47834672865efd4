# SPDX-License-Identifier: Apache-2.0
"""The commands with real processes: killed, failing, skipped, tuned; and wrong input, one line each."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from fedcore.errors import FedkrsoError, RunError
from research.command import paper, report

OPTIONS = "[steps=4,interval_steps=2,batch_size=4]"
ROOT = Path(__file__).resolve().parents[2]
SAME = (
    "method",
    "seed",
    "round",
    "held",
    "dev",
    "loss",
    "train_loss",
    "uplink_bytes",
    "downlink_bytes",
    "examples",
    "digest",
)


@pytest.fixture
def arguments(data_folder: Path, make_model: Callable[[str], Path]) -> Callable[..., list[str]]:
    def make(out: Path, methods: str, *more: str, task: str = "sst2", rounds: int = 3) -> list[str]:
        sizes = [
            "--clients",
            "3",
            "--rounds",
            str(rounds),
            "--train-rows",
            "60",
            "--held-rows",
            "16",
            "--max-length",
            "14",
        ]
        where = ["--data", str(data_folder), "--model", str(make_model("bert")), "--out", str(out), "--split", "iid"]
        return ["--task", task, "--methods", methods, *where, *sizes, *more]

    return make


def call(command: Any, arguments: list[str]) -> None:
    command.main(arguments, standalone_mode=False)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open() as file:
        return [{key: row[key] for key in SAME} for row in csv.DictReader(file)]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit, f"{what} did not come"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_command_goes_on_and_ends_with_the_same_rows(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    method = f"fedkrso{OPTIONS[:-1]},schedule=fresh]"
    program = [
        sys.executable,
        "-c",
        "from research.command import paper; paper()",
        *arguments(tmp_path / "killed", method),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    place = tmp_path / "killed" / "runs" / "sst2-iid"
    try:
        wait_for(
            lambda: any(path.read_bytes().count(b"\n") >= 1 for path in place.rglob("rows.jsonl")), "the first round"
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (rows_file,) = place.rglob("rows.jsonl")
    # Its process ends with it: nobody else goes on writing.
    wait_for(lambda: not _holders(rows_file.parent), "the end of the run's process")
    left = rows_file.read_bytes()
    assert 1 <= left.count(b"\n") < 3 and not (tmp_path / "killed" / "table.csv").exists()
    call(paper, arguments(tmp_path / "killed", method))
    assert rows_file.read_bytes().startswith(left[: left.rindex(b"\n")])
    call(paper, arguments(tmp_path / "undisturbed", method))
    assert rows(tmp_path / "killed") == rows(tmp_path / "undisturbed") and len(rows(tmp_path / "killed")) == 3


def _holders(folder: Path) -> list[int]:
    """Processes that name a folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_one_failing_run_ends_no_other_and_is_named(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverging = f"fedavg{OPTIONS[:-1]},learning_rate=1e6]"
    given = arguments(tmp_path, f"{diverging},fedavg{OPTIONS}", "--jobs", "2", rounds=1)
    with pytest.raises(RunError, match="1 of 2 runs failed") as refused:
        call(paper, given)
    said = capsys.readouterr()
    assert refused.value.exit_code == 10
    assert f"failed: {diverging} on sst2, iid, seed 0: exit code" in said.err
    assert "2/2" in said.out and [row["method"] for row in rows(tmp_path)] == [f"fedavg{OPTIONS}"]
    # What is finished is skipped: not even its times change.
    before = (tmp_path / "table.csv").read_bytes()
    call(paper, arguments(tmp_path, f"fedavg{OPTIONS}", rounds=1))
    assert (tmp_path / "table.csv").read_bytes() == before
    assert "1 of 1 runs are finished already" in capsys.readouterr().out
    call(report, [str(tmp_path)])
    assert (tmp_path / "report.html").exists() and "report.html" in capsys.readouterr().out


@pytest.mark.slow
def test_a_tuned_rate_is_used_by_later_runs(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(tmp_path, f"fedit{OPTIONS}", rounds=1)
    call(paper, [*given, "--tune", "--grid", "0.001,10", "--jobs", "2"])
    (rate,) = json.loads((tmp_path / "rates.json").read_bytes())
    tried = {one["learning_rate"]: (-one["metric"], one["loss"]) for one in rate["tried"]}
    assert set(tried) == {1e-6, 1e-2} and rate["learning_rate"] == min(tried, key=lambda one: (*tried[one], one))
    assert "at the grid's edge" in capsys.readouterr().out and not (tmp_path / "table.csv").exists()
    call(paper, given)
    call(report, [str(tmp_path)])
    text = (tmp_path / "tables" / "sst2-iid.md").read_text()
    assert f"{rate['learning_rate']:g} (tuned, at the edge of the grid)" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--task": "sst3"}, "no task 'sst3'"),
        ({"--task": "sst2,sst2"}, "sst2 is there twice"),
        ({"--methods": "fedkrso[rnak=2]"}, "did you mean 'rank'"),
        ({"--split": "dirichlet"}, "'dirichlet' is not a split"),
        ({"--split": "natural"}, "sst2 has no groups"),
        ({"--seeds": "0,one"}, "'one' is not a number"),
        ({"--seeds": "0,0"}, "0 is there twice"),
        ({"--dropout": "1"}, "Expected float < 1.0"),
        ({"--data": "/nowhere"}, "no such folder"),
        ({"--model": "/nowhere"}, "no such folder, nor a model"),
        ({"--model": "package_that_is_not:model"}, "no package"),
        ({"--task": "sst2,shakespeare"}, "no model is good for both"),
        ({"--clients": "60"}, "60 examples are too few for 60 clients"),
        ({"--task": "cola"}, "no such file"),
        ({"--rounds": "0"}, "0 is not in the range"),
    ],
)
def test_wrong_input_is_refused_in_one_line_before_anything_starts(
    changes: dict[str, str], said: str, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    given = _replaced(arguments(tmp_path / "out", "fedavg"), changes)
    with pytest.raises((FedkrsoError, click.ClickException)) as refused:
        call(paper, given)
    error = refused.value
    assert isinstance(error, (FedkrsoError, click.ClickException))
    line = error.one_line() if isinstance(error, FedkrsoError) else error.format_message()
    assert said in line and "\n" not in line
    assert not list((tmp_path / "out").rglob("rows.jsonl")) and not list((tmp_path / "out").rglob("log.txt"))


def _replaced(given: list[str], changes: dict[str, str]) -> list[str]:
    for option, value in changes.items():
        if option in given:
            given[given.index(option) + 1] = value
        else:
            given += [option, value]
    return given


def test_shakespeare_needs_a_model_that_is_named(data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FedkrsoError, match="needs a causal language model"):
        call(
            paper, ["--task", "shakespeare", "--methods", "fedavg", "--data", str(data_folder), "--out", str(tmp_path)]
        )


def test_two_commands_do_not_share_a_folder(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process works in this folder"):
            call(paper, arguments(tmp_path, "fedavg"))
