# SPDX-License-Identifier: Apache-2.0
"""Work that may take long, beside the loop that wants it done."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from fedcore.errors import StorageError

__all__ = ["Aside"]

T = TypeVar("T")


class Aside(Generic[T]):
    """One job at a time in a thread of its own; what follows from it happens in the thread that collects.

    The thread ends with the process: a job that hangs holds nobody up.

    Args:
        woken: Called in that thread when a job is over.

    Example:
        >>> told = threading.Event()
        >>> aside, found = Aside[int](told.set), []
        >>> aside.begin(lambda: 6 * 7, found.append)
        >>> told.wait(60), aside.collect(), found, aside.busy
        (True, None, [42], False)
    """

    def __init__(self, woken: Callable[[], None] = lambda: None) -> None:
        self._woken = woken
        self._done: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()
        self._then: Callable[[T | StorageError], None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a job was begun and not collected yet."""
        return self._then is not None

    def begin(self, job: Callable[[], T], then: Callable[[T | StorageError], None]) -> None:
        """Begin a job; there must be none.

        Args:
            job: Runs beside.
            then: Gets what came of it, when that is collected: also that the store does not serve. Any other error is
                raised where it is collected.
        """
        assert self._then is None, "one at a time"
        self._then = then
        threading.Thread(target=self._run, args=(job,), name="objects", daemon=True).start()

    def collect(self) -> None:
        """Have follow what is to follow from a job that is over."""
        try:
            result = self._done.get_nowait()
        except queue.Empty:
            return
        then, self._then = self._then, None
        assert then is not None
        if isinstance(result, BaseException) and not isinstance(result, StorageError):
            raise result
        then(result)

    def _run(self, job: Callable[[], T]) -> None:
        try:
            result: T | BaseException = job()
        except BaseException as error:  # noqa: BLE001 (raised where it is collected)
            result = error
        self._done.put(result)
        self._woken()
