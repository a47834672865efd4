# SPDX-License-Identifier: Apache-2.0
"""The worker under an operating-system limit: a memory cgroup where the agent may make one, else an rlimit.

A memory cgroup counts everything the worker uses, page cache among it (which the kernel drops before it kills). RLIMIT_DATA counts private
writable memory that is asked for, not used: torch asks for some hundred megabytes more than it ever touches, so that limit has an
allowance on top (measured in docs/benchmarks.md) and makes an allocation fail instead of killing. RLIMIT_AS would count every library
and mapped weight as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edge_client.memory.cgroups import memory_cgroup, number
from fedcore.processes import die_with_parent

__all__ = ["V1", "V2", "Enclosure", "Rlimit", "enclose"]

# Private writable memory that a training worker asks for beyond what is resident: thread stacks, arenas, guard areas.
_RLIMIT_ALLOWANCE_BYTES = 200 * 2**20
# When memory is short all over the device, the kernel takes the worker first and the agent last.
_WORKER_OOM_SCORE = 900


class Enclosure(Protocol):
    """What holds one worker process to a limit."""

    kind: str
    """`cgroup v2`, `cgroup v1` or `rlimit`."""
    limit_bytes: int

    def prepare(self) -> None:
        """In the child between fork and exec: enter it. MUST be safe after fork: system calls only."""
        ...

    def attach(self, pid: int) -> None:
        """Told the child's process id."""
        ...

    def set_limit(self, limit_bytes: int) -> None:
        """Another limit, also while the worker runs; where the kernel refuses one below the present use, the old one stays."""
        ...

    def peak_bytes(self) -> int | None:
        """Highest use so far, page cache included; None where it is not counted."""
        ...

    def kills(self) -> int | None:
        """How often the kernel killed in here for lack of memory; None where it is not counted."""
        ...

    def close(self) -> None:
        """Remove it; harmless when repeated."""
        ...


def enclose(limit_bytes: int, name: str, root: Path = Path("/")) -> Enclosure:
    """The best enclosure that this process may make.

    Args:
        limit_bytes: For the worker.
        name: Of a cgroup; one that a dead agent left under this name is taken over.
        root: Of the file system.
    """
    group = memory_cgroup(root=root)
    makers: list[Callable[[], Enclosure]] = []
    if group is not None and group.version == 1:
        makers.append(lambda: V1(group.folder / name, limit_bytes))
    if group is not None and group.version == 2:
        # Processes and controllers do not mix in one group of version 2: a delegated group's sibling serves first.
        makers += [lambda: V2(group.folder.parent / name, limit_bytes), lambda: V2(group.folder / name, limit_bytes)]
    for make in makers:
        try:
            return make()
        except OSError:
            # Not ours to make: the next kind.
            continue
    return Rlimit(limit_bytes)


class _Cgroup:
    """What both versions share: a folder of our own, entered by writing 0 to cgroup.procs."""

    kind = ""
    _LIMIT, _PEAK, _EVENTS = "", "", ""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        # One that a dead agent left has counted things of its own.
        with contextlib.suppress(OSError):
            folder.rmdir()
        folder.mkdir(exist_ok=True)
        try:
            self._begin()
            self._procs = os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise

    def _begin(self) -> None:
        self._write(self._LIMIT, self.limit_bytes)

    def prepare(self) -> None:
        os.write(self._procs, b"0")
        _last_to_live()

    def attach(self, pid: int) -> None:
        return

    def set_limit(self, limit_bytes: int) -> None:
        # The kernel refuses a limit below what it cannot take back.
        with contextlib.suppress(OSError):
            self._write(self._LIMIT, limit_bytes)
            self.limit_bytes = limit_bytes

    def peak_bytes(self) -> int | None:
        return number(self.folder / self._PEAK)

    def kills(self) -> int | None:
        try:
            text = (self.folder / self._EVENTS).read_text(encoding="ascii")
        except OSError:
            return None
        found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        return int(found.group(1)) if found else None

    def close(self) -> None:
        if self._procs >= 0:
            os.close(self._procs)
            self._procs = -1
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _write(self, name: str, value: int | str) -> None:
        (self.folder / name).write_text(str(value), encoding="ascii")


class V2(_Cgroup):
    """A memory cgroup, version 2."""

    kind = "cgroup v2"
    _LIMIT, _PEAK, _EVENTS = "memory.max", "memory.peak", "memory.events"

    def _begin(self) -> None:
        if not (self.folder / self._LIMIT).exists():
            control = self.folder.parent / "cgroup.subtree_control"
            control.write_text("+memory", encoding="ascii")
        super()._begin()
        with contextlib.suppress(OSError):
            self._write("memory.swap.max", 0)


class V1(_Cgroup):
    """A memory cgroup, version 1."""

    kind = "cgroup v1"
    _LIMIT, _PEAK, _EVENTS = "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"

    def _begin(self) -> None:
        # One that was left over may have a lower limit for memory and swap together, which bounds the other.
        with contextlib.suppress(OSError):
            self._write("memory.memsw.limit_in_bytes", -1)
        super()._begin()
        with contextlib.suppress(OSError):
            self._write("memory.memsw.limit_in_bytes", self.limit_bytes)
        with contextlib.suppress(OSError):
            self._write("memory.max_usage_in_bytes", 0)

    def set_limit(self, limit_bytes: int) -> None:
        """Memory, and memory with swap, in the order in which the kernel takes them."""
        swap_first = limit_bytes > self.limit_bytes
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        try:
            for name in reversed(names) if swap_first else names:
                if (self.folder / name).exists():
                    self._write(name, limit_bytes)
        except OSError:
            # Below what it cannot take back.
            return
        self.limit_bytes = limit_bytes


class Rlimit:
    """RLIMIT_DATA: an allocation beyond it fails. For systems where no cgroup can be made."""

    kind = "rlimit"

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._pid: int | None = None

    def prepare(self) -> None:
        """Set the soft limit, so that the agent may raise it again."""
        limit = self.limit_bytes + _RLIMIT_ALLOWANCE_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        _last_to_live()

    def attach(self, pid: int) -> None:
        """Remember whose limit it is."""
        self._pid = pid

    def set_limit(self, limit_bytes: int) -> None:
        """Of the running process; Linux only."""
        self.limit_bytes = limit_bytes
        if self._pid is not None and sys.platform == "linux":
            with contextlib.suppress(OSError):
                hard = resource.prlimit(self._pid, resource.RLIMIT_DATA)[1]
                resource.prlimit(self._pid, resource.RLIMIT_DATA, (limit_bytes + _RLIMIT_ALLOWANCE_BYTES, hard))

    def peak_bytes(self) -> int | None:
        """Not counted."""
        return None

    def kills(self) -> int | None:
        """Nothing is killed."""
        return None

    def close(self) -> None:
        """Nothing to remove."""
        self._pid = None


def _last_to_live() -> None:
    """Be the first that the kernel takes, and end with the agent."""
    with contextlib.suppress(OSError):
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(score, str(_WORKER_OOM_SCORE).encode())
        os.close(score)
    die_with_parent()
