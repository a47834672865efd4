# SPDX-License-Identifier: Apache-2.0
"""Runs as processes of their own: `fedkrso coordinator resume`, each in a session of its own, so that the end of the
server, or of another run, is not theirs. A process that an earlier server started is found by the lock on its run's
folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from coordinator.server.queueing import Ending
from coordinator.server.settings import ServerFiles
from coordinator.store.folder import RunFolder
from coordinator.store.viewfile import read_view
from fedcore.system.locks import owner_pid
from fedcore.system.logs import printable

__all__ = ["Processes", "last_line"]

# A wrong file, wrong data, a wrong model, a budget that does not do: the next try would say the same.
_HOPELESS: Final = (2, 3, 4, 8)
_TAIL_BYTES = 16_384


class Processes:
    """The processes of all runs of a server.

    Args:
        files: Where everything lies.
    """

    def __init__(self, files: ServerFiles) -> None:
        self._files = files
        self._ours: dict[str, subprocess.Popen[bytes]] = {}
        self._found: dict[str, int] = {}

    def begin(self, run: str) -> None:
        """Start a run's process, unless one lives already."""
        if self.alive(run):
            return
        log = self._files.log(run)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", "from fedcore.command import main; main()", "coordinator", "resume", run]
        with log.open("ab") as output:
            self._ours[run] = subprocess.Popen(
                [*command, "--runs", str(self._files.runs), "--log-format", "json"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def alive(self, run: str) -> bool:
        """Whether a run has a process: ours, or one that an earlier server started."""
        process = self._ours.get(run)
        if process is not None and process.poll() is None:
            return True
        pid = owner_pid(self._root(run))
        if pid is not None:
            self._found[run] = pid
        return pid is not None

    def ended(self, run: str) -> Ending:
        """How a run's process ended, or all that can be told of it."""
        process, pid = self._ours.pop(run, None), self._found.pop(run, 0)
        code = None if process is None else process.returncode
        seen = read_view(RunFolder(self._root(run)).view)
        rounds = 0 if seen is None else len(seen.view.rows)
        if seen is not None and seen.ended == "finished":
            return Ending("finished", "", rounds)
        # A view of an earlier try says nothing of this one.
        own = seen is not None and seen.writer.pid in (pid, None if process is None else process.pid)
        if own and seen is not None and seen.ended:
            words = seen.error
        elif code is not None and code < 0:
            words = f"its process was ended by signal {-code}"
        elif own and code is None:
            words = "its process ended without a last word: killed, or the machine went down"
        else:
            words = last_line(self._files.log(run)) or "its process ended without a word"
        if own and seen is not None and seen.ended == "interrupted":
            return Ending("interrupted", words, rounds)
        return Ending("hopeless" if code in _HOPELESS else "died", words, rounds)

    def end(self, run: str, number: int = signal.SIGTERM) -> None:
        """Send a run's process a signal, if there is one."""
        process = self._ours.get(run)
        pid = process.pid if process is not None and process.poll() is None else owner_pid(self._root(run))
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _root(self, run: str) -> Path:
        return self._files.runs / run


class _Line(msgspec.Struct):
    message: str


def last_line(path: Path) -> str:
    """The last thing that a process said, in words; empty where it said nothing.

    Args:
        path: Its log: JSON lines, and plain ones of what went wrong before there was a run.
    """
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    text = next((line for line in reversed(lines) if line.strip()), "")
    try:
        return printable(msgspec.json.decode(text, type=_Line).message)
    except msgspec.DecodeError:
        return printable(text.removeprefix("error: "))
