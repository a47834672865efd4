# SPDX-License-Identifier: Apache-2.0
"""Programs whose output is read: run with a limit, or seldom and in the background, so that nobody who reads a sensor
waits for one."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

__all__ = ["RunProgram", "Seldom", "run_nothing", "run_program"]

_MOST_CHARACTERS = 100_000
_LONGEST_PAUSE_SECONDS = 120.0
T = TypeVar("T")


class RunProgram(Protocol):
    """Runs a program and gives what it printed, or None if it is not there, failed, or took too long."""

    def __call__(self, command: Sequence[str], timeout_seconds: float) -> str | None:
        """Run it."""
        ...


def run_program(command: Sequence[str], timeout_seconds: float) -> str | None:
    """What a program prints.

    A program that cannot even be killed (one that waits inside a driver) is left behind, so that this returns in any
    case.

    Example:
        >>> run_program(["/no/such/program"], 1.0) is None
        True
    """
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, ValueError):
        return None
    try:
        output, _ = child.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        _end(child)
        return None
    return output.decode("utf-8", "replace")[:_MOST_CHARACTERS] if child.returncode == 0 else None


def run_nothing(command: Sequence[str], timeout_seconds: float) -> str | None:
    """The answer for a file tree that is not this machine's: programs here know nothing about it."""
    del command, timeout_seconds
    return None


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    try:
        child.wait(1.0)
    except subprocess.TimeoutExpired:
        return
    finally:
        if child.stdout is not None:
            child.stdout.close()


class Seldom(Generic[T]):
    """A value that is costly to find, found again now and then by a thread of its own; asking for it never waits.

    After a failure it is tried less and less often, at last every two minutes.

    Args:
        find: Finds the value; None is a failure.
        pause_seconds: How long to leave it, once it is found.
        first: What is known at the start.
        keep: How many pauses long a value that could not be renewed still counts.
        clock: Seconds, never backwards.

    Example:
        >>> seldom = Seldom(lambda: 7, lambda found: 60.0, first=6)
        >>> seldom.latest()
        6
    """

    def __init__(
        self,
        find: Callable[[], T | None],
        pause_seconds: Callable[[T], float],
        *,
        first: T | None = None,
        keep: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find, self._pause_seconds, self._keep, self._clock = find, pause_seconds, keep, clock
        self._busy = False
        self._value = first
        self._failures = 0
        now = clock()
        self._next_at = now if first is None else now + pause_seconds(first)
        self._until = now if first is None else now + keep * pause_seconds(first)

    def latest(self) -> T | None:
        """The last value, or None if there is none that still counts."""
        now = self._clock()
        if not self._busy and now >= self._next_at:
            self._busy = True
            try:
                threading.Thread(target=self._renew, name="device reading", daemon=True).start()
            except RuntimeError:  # no more threads to be had
                self._busy, self._next_at = False, now + _LONGEST_PAUSE_SECONDS
        return self._value if now <= self._until else None

    def _renew(self) -> None:
        try:
            found = self._find()
            now = self._clock()
            if found is None:
                self._failures += 1
                self._next_at = now + min(_LONGEST_PAUSE_SECONDS, 5.0 * 2.0**self._failures)
            else:
                pause = self._pause_seconds(found)
                self._failures, self._value = 0, found
                self._next_at, self._until = now + pause, now + self._keep * pause
        finally:
            self._busy = False
