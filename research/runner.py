# SPDX-License-Identifier: Apache-2.0
"""Runs in processes of their own, some at a time: what is finished is skipped, what was left goes on, what fails ends
no other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from edge_client.memory.allocator import ALLOCATORS
from fedcore.errors import ConfigError
from fedcore.system.locks import owned
from fedcore.system.processes import die_with_parent
from research.runs.rows import RunFiles, Setup

__all__ = ["Failure", "Job", "Watcher", "locked", "prepare", "run_all"]

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """A run, its folder, and where its data and model are."""

    setup: Setup
    files: RunFiles
    data: Path
    model: Path


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end."""

    setup: Setup
    reason: str


class Watcher(Protocol):
    """Who is told how runs go on."""

    def started(self, job: Job) -> None:
        """Its process was started."""
        ...

    def round_done(self, job: Job, rounds: int) -> None:
        """So many rounds of it are done."""
        ...

    def ended(self, job: Job, failure: Failure | None) -> None:
        """Told when a job's process has ended, and how it failed if it did."""
        ...


def locked(folder: Path) -> AbstractContextManager[None]:
    """Have a folder of runs for oneself.

    Raises:
        RunError: Another command works there.
    """
    return owned(folder, "another command", remedy="wait for it, or use another --out")


def prepare(setups: Sequence[Setup], out: Path, data: Path, model: Path) -> list[Job]:
    """Give each run its folder with its setup; nothing is started.

    Raises:
        ConfigError: There is a run of this name with another setup.
    """
    jobs = [Job(setup, RunFiles(out / setup.place), data, model) for setup in setups]
    for job in jobs:
        _check_same(job)
    for job in jobs:
        job.files.folder.mkdir(parents=True, exist_ok=True)
        part = job.files.setup.with_name("setup.json.part")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(job.setup)))
        part.replace(job.files.setup)
    return jobs


def _check_same(job: Job) -> None:
    try:
        there = job.files.read_setup()
    except FileNotFoundError:
        return
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"not a setup: {error}", place=str(job.files.setup), remedy="delete the folder, or use another --out"
        ) from None
    if there != job.setup:
        old, new = (_flat(setup) for setup in (there, job.setup))
        key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
        raise ConfigError(
            f"this run is there with {key} {old.get(key)}, asked for is {new.get(key)}",
            place=str(job.files.folder),
            remedy="use another --out, or the options it was begun with",
        )


def _flat(setup: Setup) -> dict[str, object]:
    fields = msgspec.to_builtins(setup)
    return {**fields.pop("method"), **fields}


def run_all(jobs: Sequence[Job], at_a_time: int, threads: int, watcher: Watcher) -> list[Failure]:
    """Run what is not finished, in order.

    Args:
        jobs: Prepared.
        at_a_time: Processes.
        threads: Of each; rows depend on them in the last bits of float sums.
        watcher: Is told.

    Returns:
        The runs that failed. An interrupt ends all processes and is raised again.
    """
    waiting = [job for job in jobs if not job.files.finished]
    running: dict[subprocess.Popen[bytes], tuple[Job, int]] = {}
    failures: list[Failure] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                job = waiting.pop(0)
                running[_start(job, threads)] = job, -1
                watcher.started(job)
            time.sleep(_POLL_SECONDS)
            for process, (job, seen) in list(running.items()):
                # Asked before rows are counted: what it wrote last is then counted too.
                ended = process.poll() is not None
                rounds = job.files.count_rounds(job.setup)
                if rounds != seen:
                    running[process] = job, rounds
                    watcher.round_done(job, rounds)
                if ended:
                    del running[process]
                    failure = _failure(job, process.returncode)
                    failures += [failure] if failure else []
                    watcher.ended(job, failure)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failures


def _start(job: Job, threads: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        **ALLOCATORS[job.setup.allocator],
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "research.one", str(job.files.folder), str(job.data), str(job.model)]
    with job.files.log.open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, preexec_fn=die_with_parent
        )


def _failure(job: Job, code: int) -> Failure | None:
    if job.files.finished:
        return None
    if code < 0:
        return Failure(job.setup, f"ended by signal {-code}")
    lines = job.files.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("error: ") if lines else "it said nothing"
    return Failure(job.setup, f"exit code {code}: {last[:300]}")
