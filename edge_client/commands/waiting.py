# SPDX-License-Identifier: Apache-2.0
"""One line for somebody who waits at a terminal."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TextIO

__all__ = ["Waiting"]

_CLEAR = "\r\x1b[K"


class Waiting:
    """Says what is being done, from two seconds on, in one line that is gone at the end. Where nobody looks, nothing.

    Args:
        out: A terminal, or something else.
        after_seconds: Nothing is said before.

    Example:
        >>> import sys
        >>> with Waiting(sys.stdout) as waiting:
        ...     waiting.say("tracing: 1 of 41")
    """

    def __init__(self, out: TextIO, after_seconds: float = 2.0) -> None:
        self._out, self._words, self._shown = out, "", ""
        self._from = time.monotonic() + after_seconds
        self._lock = threading.Lock()
        self._timer = threading.Timer(after_seconds, self._show)
        self._timer.daemon = True

    def say(self, words: str) -> None:
        """What is done now."""
        self._words = words
        if time.monotonic() >= self._from:
            self._show()

    def _show(self) -> None:
        with self._lock:
            if self._out.isatty() and self._words != self._shown:
                self._shown = self._words
                self._out.write(f"{_CLEAR}{self._words}")
                self._out.flush()

    def __enter__(self) -> Waiting:
        if self._out.isatty():
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            if self._shown:
                self._out.write(_CLEAR)
                self._out.flush()
            self._words = self._shown
