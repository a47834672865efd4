# SPDX-License-Identifier: Apache-2.0
"""Waiting for what is meant to happen, as long as somebody works on it.

A time-out by the clock fails on a machine that is slow or busy with something else. So a wait here ends without what it
waits for when those who could bring it about have ended, or have used next to no processor for a while: a slow program
is waited for, one that hangs is not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import psutil

__all__ = ["Patience", "a_group", "ended", "until"]

T = TypeVar("T")
# Longer than what a transfer waits between two tries over a link that loses much.
_QUIET_SECONDS = 150.0
# Agents and a coordinator that only wait take 0.01 to 0.03 of a core together.
_IDLE_SHARE = 0.05
_LONGEST_SECONDS = 1500.0

Worker = subprocess.Popen[bytes] | int


class Patience:
    """As long as somebody works, there is some left.

    Args:
        workers: Asked for the processes that may bring it about, with their children; this one where there are none.
        said: What they said, for whoever reads the failure.
    """

    def __init__(self, workers: Callable[[], Iterable[Worker]], said: Callable[[], str] = str) -> None:
        self._workers, self._said = workers, said
        self._began = self._quiet_since = time.monotonic()
        self._used: dict[int, float] = self._processor_seconds()

    def check(self) -> None:
        """Look whether to go on waiting.

        Raises:
            AssertionError: Nobody works on it any more.
        """
        now = time.monotonic()
        quiet = now - self._quiet_since
        if quiet > _QUIET_SECONDS:
            present = self._processor_seconds()
            more = sum(seconds - self._used.get(pid, 0.0) for pid, seconds in present.items())
            assert more > _IDLE_SHARE * quiet, f"nobody works on it any more: {self._said()[-4000:]}"
            self._used, self._quiet_since = present, now
        assert now - self._began < _LONGEST_SECONDS, f"still not there: {self._said()[-4000:]}"

    def _processor_seconds(self) -> dict[int, float]:
        """What each process has used, with its children that have ended."""
        pids = [worker if isinstance(worker, int) else worker.pid for worker in self._workers()] or [os.getpid()]
        # Forked workers (tests/helpers/forked_workers.py) are no children of who has them started, but of a child of ours.
        pids += [child.pid for child in psutil.Process().children()]
        found: dict[int, float] = {}
        for pid in pids:
            try:
                process = psutil.Process(pid)
                for one in (process, *process.children(recursive=True)):
                    times = one.cpu_times()
                    found[one.pid] = times.user + times.system + getattr(times, "children_user", 0.0)
            except psutil.Error:
                continue
        return found


@contextlib.contextmanager
def a_group(command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A program in a group of its own, which is over when the test is done with it.

    `with subprocess.Popen(...)` waits for its program also where the test has failed, and a program that would run for
    hours then hides the failure until somebody's patience ends.

    Args:
        command: What to start.
        options: As of `subprocess.Popen`.
    """
    with subprocess.Popen(command, start_new_session=True, **options) as leader:
        try:
            yield leader
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(leader.pid, signal.SIGKILL)
            raise


def until(
    done: Callable[[], T], workers: Iterable[Worker] = (), *, said: Callable[[], str] = str, pause_seconds: float = 0.05
) -> T:
    """Wait for something true.

    Args:
        done: Asked again and again.
        workers: Who brings it about.
        said: What they said, for whoever reads the failure.
        pause_seconds: Between two questions.

    Raises:
        AssertionError: It does not come.
    """
    watched = list(workers)
    patience = Patience(lambda: watched, said)
    while not (found := done()):
        patience.check()
        time.sleep(pause_seconds)
    return found


def ended(process: subprocess.Popen[bytes], others: Iterable[Worker] = (), *, said: Callable[[], str] = str) -> int:
    """Wait until a process has ended; its exit code.

    Args:
        process: Which.
        others: Who else works on what it waits for.
        said: What they said, for whoever reads the failure.
    """
    until(lambda: process.poll() is not None, [process, *others], said=said)
    assert process.returncode is not None
    return process.returncode
