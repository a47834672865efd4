# SPDX-License-Identifier: Apache-2.0
"""Asking a run's model: what is refused before anything is loaded."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from coordinator.commands.trying import try_out
from coordinator.job import Job
from coordinator.reports.answers import Said, ask_model
from coordinator.store.folder import RunFolder, write_job
from fedcore.errors import ConfigError, RunError

JOB = {
    "run": "r",
    "model": {"folder": "model"},
    "task": {"kind": "causal-lm"},
    "broker": {"url": "mqtt://127.0.0.1:9", "insecure": True},
}


def stored(folder: Path, kind: str) -> RunFolder:
    files = RunFolder(folder / "r")
    files.root.mkdir()
    write_job(files, msgspec.convert({**JOB, "task": {"kind": kind, "labels": ["a", "b"]}}, Job))
    return files


def test_a_run_without_a_round_has_no_model_yet(tmp_path: Path) -> None:
    files = stored(tmp_path, "text-classification")
    with pytest.raises(RunError, match="no round is finished"):
        ask_model(files, [("word", None)])
    assert not list(files.root.glob("scratch-*"))


def test_what_a_command_that_was_killed_left_goes_with_the_next(tmp_path: Path) -> None:
    files = stored(tmp_path, "text-classification")
    program = "import os, signal, sys; from pathlib import Path; from coordinator.store.folder import RunFolder\n"
    program += "with RunFolder(Path(sys.argv[1])).scratch() as folder:\n    os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", program, str(files.root)], check=False).returncode == -signal.SIGKILL
    assert len(files.abandoned()) == 1
    with files.scratch() as mine:
        assert list(files.root.glob("scratch-*")) == [mine] and not files.abandoned()
    assert not list(files.root.glob("scratch-*"))


def test_pairs_need_their_second_sentences(tmp_path: Path) -> None:
    stored(tmp_path, "pair-classification")
    with pytest.raises(ConfigError, match="second sentence is missing"):
        try_out.main(["r", "one", "two", "three", "--runs", str(tmp_path)], standalone_mode=False)
    with pytest.raises(RunError, match="no run 'other'"):
        try_out.main(["other", "one", "--runs", str(tmp_path)], standalone_mode=False)


def test_a_label_is_shown_with_its_probability_and_a_score_as_it_is() -> None:
    assert [str(Said("HassTurnOn", 0.974)), str(Said("", 2.5))] == ["HassTurnOn (97%)", "2.500"]
