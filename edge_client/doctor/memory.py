# SPDX-License-Identifier: Apache-2.0
"""Memory: what there is, which limits hold, what would hold a worker, where pages would go."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_client.doctor.base import Check, Surroundings, refused
from edge_client.memory.limits import budget_bytes, kernel_limits, room
from edge_client.memory.probes import available_bytes, pressure, total_bytes
from edge_client.node import Node
from fedcore.errors import FedkrsoError

__all__ = ["memory"]

_GROUP = "memory"
_MIB = 2**20
# Agent, interpreter and torch before any model; twice that to be of use.
_LEAST_BYTES, _FEW_BYTES = 256 * _MIB, 512 * _MIB
_TRY_BYTES = 256 * _MIB


def memory(around: Surroundings, node: Node | None) -> Sequence[Check]:
    """Every check of the group `memory`: what is there, what limits it, how a worker can be held."""
    return [
        _available(around.root),
        *_limits(around.root),
        *_budget(around.root, node),
        _memory_group(around),
        *_swap(around),
        _pressure(around.root),
        _allocator(platform.libc_ver()[0]),
    ]


def _available(root: Path) -> Check:
    total, available = total_bytes(root), available_bytes(root)
    if total is None or available is None:
        return Check(_GROUP, "available", "warning", "this system does not tell", "write memory_budget as a size")
    text = f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB"
    if available < _LEAST_BYTES:
        return Check(
            _GROUP,
            "available",
            "error",
            text,
            "close other programs; on a Jetson: sudo systemctl set-default multi-user.target",
        )
    few = available < _FEW_BYTES
    return Check(_GROUP, "available", "warning" if few else "ok", text, "close other programs" if few else "")


def _limits(root: Path) -> Iterator[Check]:
    lowest = next(iter(kernel_limits(root)), None)
    if lowest is None or lowest.source == "MemTotal":
        yield Check(_GROUP, "limits", "ok", "none below the device's memory")
        return
    left = room(root)
    text = f"{lowest.size_bytes / _MIB:,.0f} MiB ({lowest.source})" + (
        f", {left.size_bytes / _MIB:,.0f} MiB left" if left else ""
    )
    few = lowest.size_bytes < _LEAST_BYTES
    yield Check(_GROUP, "limits", "error" if few else "ok", text, f"raise {lowest.source}" if few else "")


def _budget(root: Path, node: Node | None) -> Iterator[Check]:
    if node is None:
        return
    try:
        size = budget_bytes(node.memory_budget, root=root)
    except FedkrsoError as error:
        yield refused(_GROUP, "budget", error)
    else:
        yield Check(_GROUP, "budget", "ok", f"{size / _MIB:,.0f} MiB ({node.memory_budget})")


def _memory_group(around: Surroundings) -> Check:
    """Makes one as for a worker, and has a process enter it."""
    memory_group = around.confine(_TRY_BYTES, f"fedkrso-doctor-{os.getpid()}", around.root)
    try:
        kind = memory_group.kind
        done = subprocess.run(
            [sys.executable, "-S", "-c", ""],
            preexec_fn=memory_group.prepare,
            check=False,
            timeout=20,
            capture_output=True,
        )
        entered = done.returncode == 0
    except (subprocess.SubprocessError, OSError):
        entered = False
    finally:
        memory_group.close()
    if not entered:
        return Check(
            _GROUP,
            "worker's limit",
            "error",
            f"{kind}, but no process can be started in it",
            "report this as a fault of fedkrso",
        )
    if kind.startswith("cgroup"):
        return Check(_GROUP, "worker's limit", "ok", f"{kind}, for this user and session")
    weak = (
        "an rlimit: the kernel counts what is asked for, not what is used"
        if kind == "rlimit"
        else "none: only the agent watches"
    )
    return Check(
        _GROUP,
        "worker's limit",
        "warning",
        weak,
        "fedkrso client install makes a service with a memory cgroup of its own",
    )


def _swap(around: Surroundings) -> Iterator[Check]:
    try:
        lines = (around.root / "proc/swaps").read_text(encoding="utf-8").splitlines()[1:]
    except OSError:
        return
    names = [line.split()[0] for line in lines if line.split()]
    jetson = around.device.facts.kind == "jetson"
    slow = [name for name in names if "mmcblk" in name]
    if slow:
        yield Check(
            _GROUP,
            "swap",
            "warning",
            f"{', '.join(slow)}: swapping to a card is a hundred times slower than memory",
            "swap on NVMe, or none",
        )
    elif jetson and any("zram" in name for name in names):
        remedy = "sudo systemctl disable nvzramconfig, and a swap file on NVMe if there is one"
        yield Check(_GROUP, "swap", "warning", "zram takes memory, and buffers of the GPU cannot be swapped", remedy)
    else:
        yield Check(_GROUP, "swap", "ok", ", ".join(names) or "none")


def _pressure(root: Path) -> Check:
    now = pressure(root=root)
    if now is None:
        return Check(_GROUP, "pressure", "ok", "not told by this kernel; available memory is watched instead")
    high = now.some_percent > 10
    text = f"{now.some_percent:.1f} % of the last ten seconds"
    return Check(_GROUP, "pressure", "warning" if high else "ok", text, "close other programs" if high else "")


def _allocator(libc: str) -> Check:
    if libc == "glibc":
        return Check(_GROUP, "allocator", "ok", "glibc: freed memory is given back")
    return Check(
        _GROUP,
        "allocator",
        "warning",
        f"{libc or 'not glibc'}: freed memory may be kept",
        "leave more room in memory_budget",
    )
