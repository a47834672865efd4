# SPDX-License-Identifier: Apache-2.0
"""A worker process from its supervisor's side (agent or coordinator).

The worker is the only process with torch. It gets commands and gives events as length-prefixed msgpack over two pipes
of its own, so that a library's print cannot be mistaken for a message. The supervisor only enqueues events; a dead
worker is an event too."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from fedcore.errors import WorkerError
from fedcore.fields.prepared import prepared
from fedcore.system.processes import die_with_parent, worker_python
from fedcore.worker.messages import Command, Event

__all__ = ["MAX_MESSAGE_BYTES", "WorkerDied", "WorkerProcess", "read_message", "write_message"]

MAX_MESSAGE_BYTES = 64 * 2**20


class WorkerDied(msgspec.Struct, frozen=True):
    """A process ended: its id, return code (negative: the signal) and the end of its error output."""

    pid: int
    returncode: int
    tail: str

    @property
    def words(self) -> str:
        """How, going on a sentence: with what, and its last words."""
        return f"ended with {self.returncode}: {self.tail.splitlines()[-1] if self.tail else 'no output'}"


def write_message(stream: BinaryIO, message: Any) -> None:
    """One message: four bytes of length, little-endian, then msgpack."""
    data = msgspec.msgpack.encode(message)
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def read_message(stream: BinaryIO, kind: Any) -> Any:
    """The next message as a member of the union `kind`, or None at the end of the stream."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    (length,) = struct.unpack("<I", head)
    if length > MAX_MESSAGE_BYTES:
        raise WorkerError(f"a message of {length} bytes between supervisor and worker")
    return msgspec.msgpack.decode(stream.read(length), type=prepared(kind))


class WorkerProcess:
    """A running worker.

    Args:
        sink: Gets every event, from a thread; it only enqueues.
        log: File for the worker's own output.
        environment: Added to the environment (allocator settings, thread counts).
        prepare: Called in the child before the program starts; by default it ends with its supervisor.

    The command is `-m edge_client.worker`, a process boundary and not an import, of this interpreter or of the one that
    `FEDKRSO_WORKER_PYTHON` names.
    """

    def __init__(
        self,
        sink: Callable[[Event | WorkerDied], None],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] = die_with_parent,
    ) -> None:
        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [worker_python(os.environ), "-m", "edge_client.worker", str(down_read), str(up_write)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(down_read, up_write),
                env={**os.environ, **(environment or {})},
                preexec_fn=prepare,
            )
        os.close(down_read)
        os.close(up_write)
        self._commands = os.fdopen(down_write, "wb")
        self._events = os.fdopen(up_read, "rb")
        self._log = log
        self._sink = sink
        self._thread = threading.Thread(target=self._read, name="worker-events", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Process id, for memory readings."""
        return self._process.pid

    def send(self, command: Command) -> None:
        """Give a command; a worker that is gone shows as `WorkerDied`, not here."""
        try:
            write_message(self._commands, command)
        except (BrokenPipeError, ValueError):
            return

    def dismiss(self) -> None:
        """Close its commands: it ends by itself, and shows as `WorkerDied` when it has."""
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Close its commands, wait, and kill it if it does not go."""
        self.dismiss()
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(timeout_seconds)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._process.kill()

    def _read(self) -> None:
        while (event := read_message(self._events, Event)) is not None:
            self._sink(event)
        self._events.close()
        self._sink(WorkerDied(self._process.pid, self._process.wait(), _tail(self._log)))


def _tail(path: Path, size_bytes: int = 2000) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size_bytes))
        return file.read().decode("utf-8", "replace").strip()
