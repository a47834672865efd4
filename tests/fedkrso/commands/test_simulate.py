# SPDX-License-Identifier: Apache-2.0
"""`fedkrso simulate` and `fedkrso try`: whole runs over a real broker, and what ends them early."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from coordinator.commands.trying import try_out
from fedcore.errors import ConfigError, RunError
from fedkrso.commands.new import new
from fedkrso.commands.simulate import simulate
from tests.patience import a_group, ended, until

pytestmark = pytest.mark.usefixtures("quick_workers")


def run(*arguments: object) -> None:
    simulate.main([*map(str, arguments)], standalone_mode=False)


def test_one_file_is_dealt_learned_from_and_the_model_can_be_tried(
    tiny_job: Path, texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    run(tiny_job, "--data", texts, "--nodes", 2, "--split", "dirichlet:5", "--budget", "1 GiB", "--runs", runs)
    output = capfd.readouterr().out
    summary = json.loads((runs / "tiny" / "summary.json").read_text())
    assert [row["participants"] for row in summary["rounds"]] == [["node-1", "node-2"]] * 2
    assert 0 <= summary["rounds"][-1]["accuracy"] <= 1 and "held-out: 5 rows" in output and "report.html" in output
    assert {node["digest"] for node in summary["nodes"].values()} == {summary["final"]["digest"]}
    assert (runs / "tiny-nodes" / "node-1.log").exists()
    with pytest.raises(RunError, match=r"already there.*--run"):
        run(tiny_job, "--data", texts, "--runs", runs)

    def tried(*words: str) -> list[str]:
        done = CliRunner().invoke(try_out, ["tiny", *words, "--runs", str(runs)], catch_exceptions=False)
        return done.output.splitlines()

    said = tried("word1 left word3", "word2 right word4")
    assert [line.partition("  ->  ")[0] for line in said] == ["word1 left word3", "word2 right word4"]
    assert all(line.partition("  ->  ")[2].startswith(("left (", "right (")) and line.endswith("%)") for line in said)
    assert not list((runs / "tiny").glob("scratch-*"))


@pytest.mark.slow
def test_a_start_of_ones_own_runs_as_it_is(
    tmp_path: Path, minilm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    new.main(["first"], standalone_mode=False)
    monkeypatch.chdir(tmp_path / "first")
    run("job.toml", "--rounds", "2")
    summary = json.loads(Path("runs/first/summary.json").read_text())
    assert list(summary["nodes"]) == ["node-1", "node-2", "node-3", "node-4"]
    # Four labels; one of them said of every message would be right in a quarter.
    assert summary["rounds"][-1]["accuracy"] > 0.8
    assert {node["digest"] for node in summary["nodes"].values()} == {summary["final"]["digest"]}


def everybody(parent: psutil.Process) -> dict[psutil.Process, str]:
    """Its children and theirs with their command lines, as far as they have started and not ended."""
    found = {}
    for child in parent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found[child] = " ".join(child.cmdline())
    return found


def test_an_interrupt_ends_everybody(tiny_job: Path, texts: Path, tmp_path: Path) -> None:
    job = tiny_job.read_text().replace("rounds = 2", "rounds = 100000")
    tiny_job.write_text(job)
    program = f"from fedkrso.commands.simulate import simulate; simulate({[str(tiny_job), '--data', str(texts)]!r})"
    with a_group([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.DEVNULL) as started:
        parent = psutil.Process(started.pid)
        until(lambda: any("edge_client.worker" in line for line in everybody(parent).values()), [started])
        running = list(everybody(parent))
        # Broker, coordinator, four nodes, and a worker.
        assert len(running) >= 7
        # As a terminal does it: the whole group.
        os.killpg(started.pid, signal.SIGINT)
        assert ended(started) != 0
    assert psutil.wait_procs(running, timeout=120)[1] == []


def test_flags_that_need_data_are_refused_without_it(tiny_job: Path) -> None:
    with pytest.raises(ConfigError, match="--data"):
        run(tiny_job, "--nodes", 3)
    with pytest.raises(ConfigError, match="is not a split"):
        run(tiny_job, "--data", "rows.csv", "--split", "evenly")
