# SPDX-License-Identifier: Apache-2.0
"""What systemd hears of the agent: that it is ready, that it lives, what it does, that it leaves. Without systemd
nothing is sent."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from systemd_watchdog.systemd_watchdog import WatchDog

__all__ = ["ServiceManager"]

_MOST_CHARACTERS = 200


class ServiceManager:
    """One agent's line to systemd; call every method from the agent's loop, so that what is told is what the loop does.

    Args:
        monotonic: Seconds that never go back. A board without a clock of its own is set by the network while the agent
            runs.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # A manager that is too busy to read must not hold the loop.
        self._socket.setblocking(False)
        self._manager, self._monotonic = WatchDog(self._socket), monotonic
        # Three words in each window: one may be late.
        self._every_seconds = self._manager.timeout / 1e6 / 3
        self._next_at = 0.0
        self._ready = self._stopping = False
        self._line, self._state, self._told = "", "", ""

    def beat(self, state: str) -> None:
        """The loop turns, and the session is in this state. The first beat, which comes after the first connection,
        means ready."""
        if not self._manager.is_enabled or self._stopping:
            return
        # A manager that restarts is away for a moment; that must not end the agent.
        with contextlib.suppress(OSError):
            if not self._ready:
                self._manager.ready()
                self._ready = True
            self._state = state
            self._tell()
            if (now := self._monotonic()) >= self._next_at:
                self._manager.notify()
                self._next_at = now + self._every_seconds

    def say(self, line: str) -> None:
        """The last thing that happened, for `systemctl status` and `fedkrso client status`."""
        self._line = " ".join(line.split())[:_MOST_CHARACTERS]

    def stopping(self) -> None:
        """The agent leaves; no beat counts from now on."""
        if not self._stopping:
            self._stopping = True
            with contextlib.suppress(OSError):
                # Assignments are separated by line ends.
                self._manager.status("leaving\nSTOPPING=1")
            self._socket.close()

    def _tell(self) -> None:
        told = f"{self._state}: {self._line}" if self._line else self._state
        if told != self._told:
            self._manager.status(told)
            self._told = told
