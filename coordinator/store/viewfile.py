# SPDX-License-Identifier: Apache-2.0
"""The view as a file in the run's folder, for whoever looks at a run from another process.

It is a picture and decides nothing: written beside and renamed, so that nobody reads half of it, and not flushed. Who
wrote it is in it, by process id and start time, so that a reader can say whether that coordinator still runs, also when
its id has been given away again."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec

from coordinator.store.pieces import Pieces
from coordinator.store.view import RunView
from fedcore.errors import FedkrsoError
from fedcore.system.durable import is_full
from fedcore.system.logs import printable

__all__ = ["End", "Seen", "ViewFile", "Writer", "read_view", "running_coordinator"]

_INTERVAL_SECONDS = 1.0
# A view of thousands of nodes is written less often: so many bytes a second at most.
_BYTES_A_SECOND = 2**20
# Of a view on which nothing changes, so that its age still says that the loop turns.
_SAME_INTERVAL_SECONDS = 5.0
End = Literal["", "finished", "failed", "interrupted"]


class Writer(msgspec.Struct, frozen=True):
    """A process of some machine, told from all others."""

    pid: int
    started: float
    """Ticks since the machine started on Linux (no clock that is set moves it), elsewhere Unix seconds."""
    host: str
    boot: str = ""
    """Which start of the machine; empty where the system does not say."""
    namespace: int = 0
    """Process ids mean something within it only: a container has its own."""

    @staticmethod
    def this() -> Writer:
        """The calling process as the writer of a view."""
        boot, namespace = _place()
        pid = os.getpid()
        started = _started(pid)
        assert started is not None, "we are running"
        return Writer(pid, started, socket.gethostname(), boot, namespace)

    def runs(self) -> bool | None:
        """Whether it still runs; None where that cannot be seen from here."""
        boot, namespace = _place()
        if self.host != socket.gethostname():
            return None
        if self.boot != boot:
            # The machine has started anew since.
            return False
        if self.namespace != namespace:
            return None
        return _started(self.pid) == self.started


class _Written(msgspec.Struct):
    writer: Writer
    view: msgspec.Raw
    ended: End = ""
    error: str = ""


@dataclass(frozen=True)
class Seen:
    """What was read.

    `ended` is the writer's own word, `finished`, `failed` or `interrupted`, and empty before it had one; `error` is the
    line it ended with."""

    view: RunView
    writer: Writer
    ended: End
    error: str

    @property
    def running(self) -> bool | None:
        """Whether the coordinator that wrote it runs; None where that cannot be seen from here."""
        return False if self.ended else self.writer.runs()

    def age_seconds(self, now: float) -> float:
        """How old the view is; a clock that was set back makes it 0, not less."""
        return max(0.0, now - self.view.written_at)


class ViewFile:
    """Writes views; a context manager around a coordinator's life, whose end is the last thing written.

    Args:
        path: `view.json` in the run's folder.
        first: The view before the coordinator has one: it may prepare for a while.
        clock: Unix seconds.
        monotonic: Seconds that never go back.
    """

    def __init__(
        self,
        path: Path,
        first: RunView,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._view, self._clock, self._monotonic = path, first, clock, monotonic
        self._writer = Writer.this()
        self._next_at = self._same_until = float("-inf")
        self._content, self._pieces = b"", Pieces()
        self.stopped = False
        """Whether the run was left before its end."""

    def __enter__(self) -> ViewFile:
        self.show(self._view)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._write("interrupted", "interrupted")
        elif isinstance(error, FedkrsoError):
            self._write("failed", error.one_line())
        elif error is not None:
            self._write("failed", printable(f"{type(error).__name__}: {error}"))
        elif self.stopped:
            self._write("interrupted", "stopped")
        else:
            self._write("finished")

    def show(self, view: RunView) -> None:
        """The view changed: called hundreds of times a second in a large run, and writes once."""
        self._view = view
        if self._monotonic() < self._next_at:
            return
        self._next_at = self._monotonic() + _INTERVAL_SECONDS
        self._write()

    def _write(self, ended: End = "", error: str = "") -> None:
        now = self._monotonic()
        # Without the time, to see whether anything else changed.
        content = self._pieces.whole(self._view, 0.0)
        self._next_at = now + max(_INTERVAL_SECONDS, len(content) / _BYTES_A_SECOND)
        if content == self._content and not ended and now < self._same_until:
            return
        self._view.written_at = self._clock()
        whole = self._pieces.whole(self._view, self._view.written_at)
        data = msgspec.json.encode(_Written(self._writer, msgspec.Raw(whole), ended, error))
        beside = self._path.with_name(self._path.name + ".new")
        try:
            beside.write_bytes(data)
            beside.replace(self._path)
        except OSError as failure:
            # The run itself says that the disk is full, if it needs it.
            if not is_full(failure):
                raise
            beside.unlink(missing_ok=True)
            return
        self._content, self._same_until = content, now + _SAME_INTERVAL_SECONDS


def read_view(path: Path) -> Seen | None:
    """What a coordinator wrote last; None where none has written, or where it is not a view.

    A picture that cannot be read is no error: ledger and summary tell the same, without what happens right now.
    """
    try:
        written = msgspec.json.decode(path.read_bytes(), type=_Written)
        return Seen(RunView.decoded(bytes(written.view)), written.writer, written.ended, printable(written.error))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def running_coordinator(path: Path, patience_seconds: float = 3.0) -> int | None:
    """The process id of a coordinator that serves this run on this machine; None if none does. One that was killed may
    take a moment."""
    until = time.monotonic() + patience_seconds
    while (seen := read_view(path)) is not None and seen.running:
        if time.monotonic() >= until:
            return seen.writer.pid
        time.sleep(0.05)
    return None


def _place() -> tuple[str, int]:
    """The machine's start and the namespace of process ids, where the system tells them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return "", 0


def _started(pid: int) -> float | None:
    """When a process started; None if there is none, or if it has ended and only waits to be buried."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        # The name, in brackets, may hold anything; the state is the first field after it, the start the twentieth.
        fields = stat[stat.rindex(b")") + 2 :].split()
        return None if fields[0] in (b"Z", b"X") else float(fields[19])
    except ProcessLookupError:
        return None
    except (OSError, ValueError, IndexError):
        if Path("/proc/self/stat").exists():
            # Where every process has such a file, one without is no process.
            return None
    # Elsewhere than on Linux alone: who looks at a run need not wait for it.
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
