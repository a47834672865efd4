# SPDX-License-Identifier: Apache-2.0
"""`fedkrso runs prune`: what goes, what stays, and which runs are left alone. That a run can do afterwards what it could
before is shown on real ones, in tests/fedkrso/test_run.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from made_runs import fedkrso, finished_run, killed_run, running_run

from coordinator.store.folder import RunFolder, stored_job


def _gone() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def fill(files: RunFolder) -> dict[str, Path]:
    """Files as a run of three rounds leaves them."""
    paths = {
        "update": files.update(3, "home-0"),
        "before": files.state(2),
        "last": files.state(3),
        "published": files.published_state(3, "whole"),
        "evaluator": files.evaluator / "base" / "0" / "weights.safetensors",
        "merged": files.base / "1" / "weights.safetensors",
        "artefact": files.artefact,
        "abandoned": files.root / f"scratch-{_gone()}-x" / "model" / "weights.safetensors",
        "in use": files.root / f"scratch-{os.getpid()}-x" / "model" / "weights.safetensors",
    }
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
    return paths


def test_what_nobody_needs_goes_and_all_else_stays(tmp_path: Path) -> None:
    paths = fill(finished_run(tmp_path, "done"))
    foreseen = fedkrso("runs", "prune", "--runs", tmp_path, "--dry-run", "--json")
    assert all(path.exists() for path in paths.values()), "a dry run deletes nothing"
    told = json.loads(foreseen.stdout)
    assert not told["deleted"] and [(row["run"], row["bytes"]) for row in told["runs"]] == [("done", 4000)]
    said = fedkrso("runs", "prune", "done", "--runs", tmp_path, "--yes")
    assert said.returncode == 0 and "evaluator, scratch-" in said.stdout and "updates, state/2.npz" in said.stdout, said
    stays = {"last", "published", "merged", "artefact", "in use"}
    assert {name for name, path in paths.items() if path.exists()} == stays
    assert fedkrso("runs", "show", "done", "--runs", tmp_path).returncode == 0


def test_without_the_last_state_none_before_it_goes(tmp_path: Path) -> None:
    paths = fill(finished_run(tmp_path, "done"))
    paths["last"].unlink()
    assert fedkrso("runs", "prune", "--runs", tmp_path, "--yes").returncode == 0
    assert paths["before"].exists()


def test_updates_that_count_in_a_round_to_come_stay(tmp_path: Path) -> None:
    files = finished_run(tmp_path, "done")
    job = stored_job(files.root)
    buffered = msgspec.structs.replace(job, round=msgspec.structs.replace(job.round, kind="buffered", buffer_size=2))
    files.job.write_bytes(msgspec.json.encode(buffered))
    assert msgspec.json.decode(files.job.read_bytes())["round"]["kind"] == "buffered"
    paths = fill(files)
    assert fedkrso("runs", "prune", "--runs", tmp_path, "--yes").returncode == 0
    assert paths["update"].exists() and not paths["before"].exists()


@pytest.mark.parametrize("name", ["killed", "live"])
def test_a_run_that_can_go_on_is_left_alone(tmp_path: Path, name: str) -> None:
    killed_run(tmp_path, "killed")
    with running_run(tmp_path, "live"):
        paths = fill(RunFolder(tmp_path / name))
        assert fedkrso("runs", "prune", "--runs", tmp_path, "--yes").stdout == "nothing to delete\n"
        said = fedkrso("runs", "prune", name, "--runs", tmp_path, "--yes")
        assert said.returncode == 2 and "not finished: its files are needed to go on" in said.stderr, said
    assert all(path.exists() for path in paths.values())


def test_a_machine_is_not_asked(tmp_path: Path) -> None:
    said = fedkrso("runs", "prune", "--runs", tmp_path, "--json")
    assert said.returncode == 2 and "--yes or --dry-run" in said.stderr
