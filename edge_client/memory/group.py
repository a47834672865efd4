# SPDX-License-Identifier: Apache-2.0
"""The worker under an operating-system limit: a memory cgroup where the agent may make one, else an rlimit.

A memory cgroup counts everything the worker uses, page cache among it (which the kernel drops before it kills).
RLIMIT_DATA counts private writable memory that is asked for, not used, and makes an allocation fail instead of killing.
RLIMIT_AS would count every library and mapped weight as well: a training worker has mapped 1.2 to 2.5 GB where it uses
0.7.

What a worker asks for beyond what it touches (VmData less RssAnon; x86-64): 157 MiB after a step with the worker's
modules and two threads, and 16.4 MiB for each further thread, which has a stack in the forward and one in the backward
pool. That is allowed on top."""

from __future__ import annotations

import contextlib
import operator
import os
import re
import resource
import sys
from pathlib import Path
from typing import Protocol

import psutil

from edge_client.memory.cgroups import MemoryCgroup, memory_cgroup, number
from edge_client.memory.limits import droppable_bytes
from fedcore.system.processes import die_with_parent

__all__ = ["V1", "V2", "MemoryGroup", "Rlimit", "Unconfined", "confine"]

# Arenas and libraries' private tables that a worker asks for and does not touch; thread stacks come on top.
_UNTOUCHED_BYTES = 140 * 2**20
# What threads get where the stack has no limit (or one beyond reason); each training thread has two.
_MOST_STACK_BYTES = 8 * 2**20
# When memory is short all over the device, the kernel takes the worker first and the agent last.
_WORKER_OOM_SCORE = b"900"
_LEAF = "agent"


class MemoryGroup(Protocol):
    """What holds one worker process to a limit."""

    kind: str
    """`cgroup v2`, `cgroup v1`, `rlimit` or `none`."""
    limit_bytes: int

    def prepare(self) -> None:
        """In the child between fork and exec: enter it. MUST be safe after fork: system calls only."""

    def attach(self, pid: int) -> None:
        """Told the child's process id."""

    def set_limit(self, limit_bytes: int) -> None:
        """Another limit, also while the worker runs. A cgroup's that is below what is used and cannot be dropped is not
        taken."""

    def peak_bytes(self) -> int | None:
        """Highest use so far, page cache included; None where it is not counted."""

    def current_bytes(self) -> int | None:
        """What is used now, less page cache that can be dropped; None where it is not counted."""

    def kills(self) -> int | None:
        """How often the kernel killed in here for lack of memory; None where it is not counted."""

    def close(self) -> None:
        """Remove it; harmless when repeated."""


def confine(limit_bytes: int, name: str, root: Path = Path("/"), threads: int | None = None) -> MemoryGroup:
    """The best memory group that this process may make: a memory cgroup, an rlimit, or none where the system has
    neither.

    A worker never leaves a limit that its agent is under. With version 2 its group is made inside the agent's own, and
    the agent, if it is alone there with its children, moves to a leaf `agent`, since processes and controllers do not
    mix in one group; else beside it, if it has no limit. In a systemd unit with `Delegate=memory` that is the unit's
    own group; where systemd (254) starts the agent in the leaf (`DelegateSubgroup=agent`), the worker's group is beside
    the leaf and inside the unit's all the same.

    Args:
        limit_bytes: For the worker.
        name: Of a cgroup; ends with this process' id, so that no two agents share one. Empty ones of agents that are
            gone are removed.
        root: Of the file system.
        threads: That the worker will train with; all of the device's by default. Only an rlimit needs to know.

    Example:
        >>> memory_group = confine(512 * 2**20, f"fedkrso-doc-{os.getpid()}")
        >>> memory_group.kind in ("cgroup v2", "cgroup v1", "rlimit", "none")
        True
        >>> memory_group.close()
    """
    group = memory_cgroup(root=root)
    if group is not None:
        kind = V1 if group.version == 1 else V2
        for place in (operator.attrgetter("folder"), _emptied, _beside)[: 1 if kind is V1 else 3]:
            # Not ours to make: the next place.
            with contextlib.suppress(OSError):
                folder = place(group)
                _sweep(folder)
                return kind(folder / name, limit_bytes)
    return Rlimit(limit_bytes, threads) if sys.platform == "linux" else Unconfined(limit_bytes)


def _sweep(folder: Path) -> None:
    """Remove what agents left that were killed outright: the kernel lets go of a group only when it is empty."""
    for left in folder.glob("fedkrso-*"):
        pid = left.name.rpartition("-")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            with contextlib.suppress(OSError):
                left.rmdir()


class _Cgroup:
    """What both versions share: a folder of our own, entered by writing 0 to cgroup.procs."""

    kind = ""
    _LIMIT, _CURRENT, _PEAK, _EVENTS = "", "", "", ""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        # One that a dead agent left goes first. Where a process of it still ends, it is taken over, and its kills are
        # not ours.
        with contextlib.suppress(OSError):
            folder.rmdir()
        folder.mkdir(exist_ok=True)
        self._kills_before = 0
        self._kills_before = self.kills() or 0
        try:
            self._begin()
            self._procs = os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise

    def _begin(self) -> None:
        raise NotImplementedError

    def prepare(self) -> None:
        os.write(self._procs, b"0")
        _last_to_live()

    def attach(self, pid: int) -> None:
        return

    def current_bytes(self) -> int | None:
        used = number(self.folder / self._CURRENT)
        return None if used is None else max(0, used - droppable_bytes(self.folder))

    def peak_bytes(self) -> int | None:
        return number(self.folder / self._PEAK)

    def kills(self) -> int | None:
        with contextlib.suppress(OSError):
            found = re.search(
                r"^oom_kill (\d+)$", (self.folder / self._EVENTS).read_text(encoding="ascii"), re.MULTILINE
            )
            return int(found.group(1)) - self._kills_before if found else None
        return None

    def close(self) -> None:
        if self._procs >= 0:
            os.close(self._procs)
            self._procs = -1
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _write(self, name: str, value: int | str) -> None:
        (self.folder / name).write_text(str(value), encoding="ascii")

    def _try(self, name: str, value: int) -> None:
        with contextlib.suppress(OSError):
            self._write(name, value)


class V2(_Cgroup):
    """A memory cgroup, version 2."""

    kind = "cgroup v2"
    _LIMIT, _CURRENT, _PEAK, _EVENTS = "memory.max", "memory.current", "memory.peak", "memory.events"

    def _begin(self) -> None:
        if not (self.folder / self._LIMIT).exists():
            (self.folder.parent / "cgroup.subtree_control").write_text("+memory", encoding="ascii")
        self._write(self._LIMIT, self.limit_bytes)
        self._try("memory.swap.max", 0)

    def set_limit(self, limit_bytes: int) -> None:
        """Version 2 does not refuse a limit below the use, it kills at once: such a limit is not written."""
        used = self.current_bytes()
        if used is None or used <= limit_bytes:
            with contextlib.suppress(OSError):
                self._write(self._LIMIT, limit_bytes)
                self.limit_bytes = limit_bytes


class V1(_Cgroup):
    """A memory cgroup, version 1."""

    kind = "cgroup v1"
    _LIMIT, _CURRENT = "memory.limit_in_bytes", "memory.usage_in_bytes"
    _PEAK, _EVENTS = "memory.max_usage_in_bytes", "memory.oom_control"

    def _begin(self) -> None:
        # One that was left over may have a lower limit for memory and swap together, which bounds the other.
        self._try("memory.memsw.limit_in_bytes", -1)
        self._write(self._LIMIT, self.limit_bytes)
        self._try("memory.memsw.limit_in_bytes", self.limit_bytes)
        self._try("memory.max_usage_in_bytes", 0)

    def set_limit(self, limit_bytes: int) -> None:
        """Memory, and memory with swap, in the order in which the kernel takes them."""
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        try:
            for name in reversed(names) if limit_bytes > self.limit_bytes else names:
                if (self.folder / name).exists():
                    self._write(name, limit_bytes)
        except OSError:
            # Below what it cannot take back. Memory alone may have been lowered, by swapping; the worker is not left to
            # thrash.
            self._try("memory.limit_in_bytes", self.limit_bytes)
            return
        self.limit_bytes = limit_bytes


class _Uncounted:
    """What systems without a cgroup share: nothing is counted, nothing is to be removed."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._pid: int | None = None

    def attach(self, pid: int) -> None:
        self._pid = pid

    def peak_bytes(self) -> int | None:
        return None

    current_bytes = kills = peak_bytes

    def close(self) -> None:
        self._pid = None


class Unconfined(_Uncounted):
    """No limit that the system keeps: the monitor's readings are all there is. For systems other than Linux."""

    kind = "none"

    def prepare(self) -> None:
        """End with the agent, where the system can be told so."""
        _last_to_live()

    def set_limit(self, limit_bytes: int) -> None:
        """Remember a limit that nothing enforces."""
        self.limit_bytes = limit_bytes


class Rlimit(_Uncounted):
    """RLIMIT_DATA: an allocation beyond the limit and the allowance for these threads fails. Where no cgroup can be
    made."""

    kind = "rlimit"

    def __init__(self, limit_bytes: int, threads: int | None = None) -> None:
        super().__init__(limit_bytes)
        stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
        stack = stack if 0 < stack < _MOST_STACK_BYTES else _MOST_STACK_BYTES
        self.allowance_bytes = _UNTOUCHED_BYTES + 2 * stack * (threads or os.cpu_count() or 1)

    def prepare(self) -> None:
        """Set the soft limit, so that the agent may raise it again."""
        resource.setrlimit(resource.RLIMIT_DATA, self._soft_and_hard(resource.getrlimit(resource.RLIMIT_DATA)[1]))
        _last_to_live()

    def set_limit(self, limit_bytes: int) -> None:
        """Give the running process another limit; without effect but on Linux."""
        self.limit_bytes = limit_bytes
        if self._pid is not None and sys.platform == "linux":
            with contextlib.suppress(OSError):
                hard = resource.prlimit(self._pid, resource.RLIMIT_DATA)[1]
                resource.prlimit(self._pid, resource.RLIMIT_DATA, self._soft_and_hard(hard))

    def _soft_and_hard(self, hard: int) -> tuple[int, int]:
        # A soft limit beyond the hard one is refused, and a worker that cannot be given its limit would not start.
        return min(
            self.limit_bytes + self.allowance_bytes, sys.maxsize if hard == resource.RLIM_INFINITY else hard
        ), hard


def _emptied(group: MemoryCgroup) -> Path:
    """Our own group, with us in a leaf of it; everything as before where that is refused. From the leaf, the place is
    beside it."""
    folder, leaf = group.folder, group.folder / _LEAF
    # A program that reads a sensor is our child, and comes along. What else is there is a session's, and stays where it
    # is.
    ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    there = _processes(folder)
    if folder.name == _LEAF or os.getpid() not in there or not there <= ours:
        raise PermissionError("our group is not ours alone")
    leaf.mkdir(exist_ok=True)
    try:
        # We go first: what we start from then on begins in the leaf.
        for pid in sorted(there, key=lambda pid: pid != os.getpid()):
            _move(pid, leaf)
        (folder / "cgroup.subtree_control").write_text("+memory", encoding="ascii")
    except OSError:
        with contextlib.suppress(OSError):
            for pid in there:
                _move(pid, folder)
            leaf.rmdir()
        raise
    return folder


def _processes(folder: Path) -> set[int]:
    return {int(pid) for pid in (folder / "cgroup.procs").read_text(encoding="ascii").split()}


def _move(pid: int, folder: Path) -> None:
    # A child may have ended meanwhile.
    with contextlib.suppress(ProcessLookupError):
        (folder / "cgroup.procs").write_text(str(pid), encoding="ascii")


def _beside(group: MemoryCgroup) -> Path:
    """The group above ours, if a worker there is under every limit that we are under."""
    limited = any(number(group.folder / name) is not None for name in ("memory.max", "memory.high"))
    # Whoever moves a process must be able to write to the group above both places.
    if group.folder == group.top or limited or not os.access(group.folder.parent / "cgroup.procs", os.W_OK):
        raise PermissionError("the worker's group belongs inside our own")
    return group.folder.parent


def _last_to_live() -> None:
    """Be the first that the kernel takes, and end with the agent."""
    with contextlib.suppress(OSError):
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(score, _WORKER_OOM_SCORE)
        os.close(score)
    die_with_parent()
