# SPDX-License-Identifier: Apache-2.0
"""The protocol between a supervisor (agent or coordinator) and its worker process, and the supervisor's end of it.

The worker is the only process with torch. It gets commands and gives events as length-prefixed msgpack over two pipes of its
own, so that a library's print cannot be mistaken for a message. The supervisor only enqueues events; a dead worker is an event too.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from fedcore.errors import WorkerError
from fedcore.job import DataSection, TaskSection
from fedcore.memoryplan import Footprint, MemoryPlan
from fedcore.plan import ObjectKind, Plan
from fedcore.processes import die_with_parent
from fedcore.schema import ModelSchema
from fedcore.types import BaseKind

__all__ = [
    "Adopt",
    "Adopted",
    "Command",
    "Configure",
    "Describe",
    "Described",
    "Evaluate",
    "Evaluated",
    "Event",
    "Failed",
    "FindInformedRows",
    "InformedRowsFound",
    "Measured",
    "Progress",
    "Ready",
    "Route",
    "Sketch",
    "Sketched",
    "StepDown",
    "Train",
    "Trained",
    "WorkerDied",
    "WorkerProcess",
    "read_message",
    "write_message",
]

MAX_MESSAGE_BYTES = 64 * 2**20


class Route(msgspec.Struct, frozen=True):
    """How a worker computes.

    Example:
        >>> Route("cpu", "bfloat16").words
        'bfloat16 on cpu'
    """

    torch_device: str = "cpu"
    compute_dtype: str = "float32"
    reason: str = ""
    """Why, for a person."""

    @property
    def words(self) -> str:
        """For status and log."""
        return f"{self.compute_dtype} on {self.torch_device}"


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """Find out what of a model is trained for a task."""

    model_folder: str
    task: TaskSection
    trained_tensors: tuple[str, ...] = ()
    """Names (or patterns with `*`) of checkpoint tensors that are trained whole beside the new head."""


class Sketch(msgspec.Struct, frozen=True, kw_only=True, tag="sketch"):
    """Read the data, and find out what training on it would keep in memory. No weight is loaded."""

    plan: Plan
    model_folder: str
    data: DataSection
    folder: str
    """The worker's own folder; traces are kept there for the next start."""
    threads: int = 1
    torch_device: str = "cpu"
    """`auto`: whichever is faster here. A worker whose first command leaves this open measures before it loads its libraries."""
    compute_dtype: str = "float32"
    """`auto`: bfloat16 where it is faster in both directions."""
    route_folder: str = ""
    """Where measurements of this machine are kept; empty: nowhere."""


class Configure(msgspec.Struct, frozen=True, kw_only=True, tag="configure"):
    """Load model and data for a plan's run. Cheap to repeat."""

    plan: Plan
    run: str
    node: str
    model_folder: str
    data: DataSection
    folder: str
    """The worker's own folder: states, master copies, finished intervals."""
    threads: int
    torch_device: str = "cpu"
    compute_dtype: str = "float32"
    memory: MemoryPlan = MemoryPlan(micro_batch_size=1)
    """Of this, what loading needs to know: length, mapped weights, allocator."""
    calibrate: bool = False
    """Measure two tiny steps once the model is loaded."""
    informed: str = ""
    """File of the run's informed rows, where the plan has some."""


class FindInformedRows(msgspec.Struct, frozen=True, kw_only=True, tag="find_informed_rows"):
    """Measure a base model's inputs on text and write the run's informed rows (`fedcore.informed`)."""

    model_folder: str
    task: TaskSection
    model_schema: ModelSchema
    base_kind: BaseKind
    data: DataSection
    """Text; its labels do not matter."""
    rows: int
    """Texts at most."""
    subspaces: int
    """How many of the pool's are informed."""
    rank: int
    pool: int
    folder: str
    """For what is needed in between."""
    path: str
    """Of the file."""
    threads: int = 1


class Adopt(msgspec.Struct, frozen=True, tag="adopt"):
    """Take a published object (a fetched file), and fold first where generations say so."""

    path: str
    version: int
    generation: int
    kind: ObjectKind
    digest: str


class Train(msgspec.Struct, frozen=True, tag="train"):
    """Train the plan's round from the held state and write the update to `path`; finished intervals on disk are not trained again."""

    plan: Plan
    path: str
    ladder: tuple[MemoryPlan, ...]
    """The memory plan to begin with, then smaller ones in order."""


class StepDown(msgspec.Struct, frozen=True, tag="step_down"):
    """Go down to this rung of the round's ladder before the next micro-batch. Has no answer; `Progress` tells."""

    rung: int


class Evaluate(msgspec.Struct, frozen=True, tag="evaluate"):
    """Measure the held state on the configured data."""

    version: int


Command = Describe | Sketch | Configure | Adopt | Train | StepDown | Evaluate | FindInformedRows


class Described(msgspec.Struct, frozen=True, tag="described"):
    """Answer to `Describe`."""

    model_schema: ModelSchema
    task: TaskSection
    """With its labels as a list, also where the job names a function."""


class Sketched(msgspec.Struct, frozen=True, tag="sketched"):
    """Answer to `Sketch`."""

    footprint: Footprint
    examples: int
    route: Route = Route()
    """How it will compute."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A tiny step's peak, for calibration."""

    micro_batch_size: int
    length: int
    static_bytes: int
    """Resident before the step."""
    peak_bytes: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Model and data are loaded; what this replica holds from earlier."""

    version: int
    generation: int
    digest: str
    examples: int
    measured: tuple[Measured, ...] = ()
    peak_bytes: int | None = None
    """Highest resident size of the worker until now."""
    accelerator_bytes: int | None = None
    """What the worker holds of an accelerator's memory; None on a processor."""


class Adopted(msgspec.Struct, frozen=True, tag="adopted"):
    """The replica is now at `version`, with this model digest."""

    version: int
    generation: int
    digest: str


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """An optimiser step is done."""

    step: int
    steps: int
    loss: float
    rung: int = 0
    """Of the round's ladder of memory plans."""
    peak_bytes: int | None = None
    """Highest resident size of the worker during the step."""
    accelerator_bytes: int | None = None
    """What the worker holds of an accelerator's memory; None on a processor."""


class Trained(msgspec.Struct, frozen=True, tag="trained"):
    """The update is on disk."""

    round: int
    path: str
    examples: int
    loss: float
    seconds: float
    restored: int = 0
    """Intervals that lay finished on disk."""


class InformedRowsFound(msgspec.Struct, frozen=True, tag="informed_rows_found"):
    """The file of informed rows is written and flushed."""

    texts: int
    tokens: int


class Evaluated(msgspec.Struct, frozen=True, tag="evaluated"):
    """Metrics of a version on the evaluation data."""

    version: int
    accuracy: float
    loss: float
    metrics: dict[str, float]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A command failed; the worker lives on."""

    error: str
    message: str
    place: str
    remedy: str
    exit_code: int


Event = Described | Sketched | Ready | Adopted | Progress | Trained | Evaluated | InformedRowsFound | Failed
# As in `fedcore.wire.codec`: the thread that reads a worker's events must not be the first to look into these types.
for _kind in (Command, Event):
    msgspec.msgpack.Decoder(_kind)


class WorkerDied(msgspec.Struct, frozen=True):
    """A process ended: its id, return code (negative: the signal) and the end of its error output."""

    pid: int
    returncode: int
    tail: str


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
    return msgspec.msgpack.decode(stream.read(length), type=kind)


class WorkerProcess:
    """A running worker.

    Args:
        sink: Gets every event, from a thread; it only enqueues.
        log: File for the worker's own output.
        environment: Added to the environment (allocator settings, thread counts).
        prepare: Called in the child before the program starts; by default it ends with its supervisor.

    The command is this interpreter with `-m edge_client.worker`: a process boundary, not an import.
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
                [sys.executable, "-m", "edge_client.worker", str(down_read), str(up_write)],
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

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Close its commands, wait, and kill it if it does not go."""
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()
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
