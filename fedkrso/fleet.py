# SPDX-License-Identifier: Apache-2.0
"""A whole run on one machine: coordinator and nodes as processes of their own, which speak over a real broker."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fedcore.errors import RunError
from fedcore.system.processes import die_with_parent

__all__ = ["run_fleet"]

_LOOK_SECONDS = 0.2
_LEAVE_SECONDS = 10.0


def run_fleet(job: Path, nodes: Mapping[str, Path], *, runs: Path, logs: Path) -> int:
    """Run a job with all of its nodes and wait for the end; whatever happens, every process has ended on return.

    The coordinator speaks to this program's own output.

    Args:
        job: The job file. Its broker runs already.
        nodes: Each node's name and its node file.
        runs: Folder of runs.
        logs: Folder for a log of each node.

    Returns:
        The coordinator's exit code.

    Raises:
        RunError: A node failed before the run had ended; the message has the last line of its log.
    """
    coordinator = _start(["coordinator", "run", str(job), "--runs", str(runs)], None)
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, node in nodes.items():
            children[name] = _start(["client", "run", str(node)], logs / f"{name}.log")
        while coordinator.poll() is None:
            for name, child in children.items():
                if child.poll() not in (None, 0):
                    raise _failure(name, child.returncode, logs / f"{name}.log")
            time.sleep(_LOOK_SECONDS)
        # Nodes leave by themselves once they have heard that the run is over.
        _wait(children, _LEAVE_SECONDS)
    finally:
        everybody = {"coordinator": coordinator, **children}
        for child in everybody.values():
            if child.poll() is None:
                child.terminate()
        _wait(everybody, _LEAVE_SECONDS)
        for child in everybody.values():
            if child.poll() is None:
                child.kill()
            child.wait()
    return coordinator.returncode


def _start(arguments: list[str], log: Path | None) -> subprocess.Popen[bytes]:
    """One `fedkrso` command; without a log it has our own output."""
    command = [sys.executable, "-m", "fedkrso", *arguments]
    if log is None:
        return subprocess.Popen(command, preexec_fn=die_with_parent)
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=die_with_parent
        )


def _failure(name: str, code: int, log: Path) -> RunError:
    said = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(said) if line.strip()), "it said nothing")
    return RunError(f"{name} ended with {code}: {last.strip()}", place=str(log))


def _wait(children: Mapping[str, subprocess.Popen[bytes]], seconds: float) -> None:
    """Until all have ended, or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(child.poll() is None for child in children.values()):
        time.sleep(_LOOK_SECONDS / 4)
