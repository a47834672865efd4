# SPDX-License-Identifier: Apache-2.0
"""What the kernel will really let this device's client have, and the budget that its owner asks for.

Precedence: the lowest limit of any cgroup above this process, of its own rlimits, or the device's memory wins. What can
be had now (`room`) is less: what those cgroups already use is taken off, and MemAvailable bounds it. MemAvailable is no
limit, since it passes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_client.memory.cgroups import memory_cgroup, number
from edge_client.memory.probes import available_bytes, total_bytes
from fedcore.config.reading import parse_size
from fedcore.errors import BudgetError, ConfigError

__all__ = ["Limit", "budget_bytes", "droppable_bytes", "kernel_limits", "room"]

_LIMIT_NAMES = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
_USE_NAME = {1: "memory.usage_in_bytes", 2: "memory.current"}
_RLIMITS = {"Max data size": "RLIMIT_DATA", "Max address space": "RLIMIT_AS"}
_AUTO_SHARE = 0.6
# Agent, interpreter and torch before any model; a start measures it exactly.
_LEAST_BUDGET_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Limit:
    """So many bytes, and which file says so."""

    source: str
    size_bytes: int


def kernel_limits(root: Path = Path("/"), pid: int | str = "self") -> tuple[Limit, ...]:
    """Every limit on a process: its memory cgroups', its rlimits', the device's memory; the lowest first.

    Example:
        >>> sizes = [limit.size_bytes for limit in kernel_limits()]
        >>> sizes == sorted(sizes)
        True
    """
    found = _rlimits(root, pid)
    group = memory_cgroup(pid, root)
    if group is not None:
        for folder in group.ancestors:
            for name in _LIMIT_NAMES[group.version]:
                limit = number(folder / name)
                if limit is not None:
                    found.append(Limit(str(folder / name), limit))
    total = total_bytes(root)
    if total is not None:
        found.append(Limit("MemTotal", total))
    return tuple(sorted(found, key=lambda limit: limit.size_bytes))


def room(root: Path = Path("/")) -> Limit | None:
    """What can still be had: the least of MemAvailable and of each cgroup's limit less its use, page cache that can be
    dropped apart."""
    found = []
    group = memory_cgroup(root=root)
    if group is not None:
        for folder in group.ancestors:
            use = number(folder / _USE_NAME[group.version])
            for name in _LIMIT_NAMES[group.version]:
                limit = number(folder / name)
                if limit is not None and use is not None:
                    found.append(Limit(str(folder / name), max(0, limit - max(0, use - droppable_bytes(folder)))))
    available = available_bytes(root)
    if available is not None:
        found.append(Limit("MemAvailable", available))
    return min(found, key=lambda limit: limit.size_bytes, default=None)


def budget_bytes(text: str, *, place: str = "memory_budget", root: Path = Path("/")) -> int:
    """The budget for agent and worker together.

    Args:
        text: A size (`2.5 GiB`), a share of what the kernel allows (`60%`), or `auto`: 60 % of what can be had now.
        place: Named in errors.
        root: Of the file system.

    Raises:
        ConfigError: Not a budget.
        BudgetError: Less than the training runtime alone needs, or more than the kernel allows.

    Example:
        >>> budget_bytes("auto") > 0
        True
    """
    limits, now = kernel_limits(root), room(root)
    most = limits[0] if limits else None
    if most is not None and most.size_bytes < _LEAST_BUDGET_BYTES:
        # No budget would do: what there is to change is the limit.
        raise BudgetError(
            f"{most.source} allows {most.size_bytes / 2**20:,.0f} MiB, less than the {_LEAST_BUDGET_BYTES // 2**20} MiB"
            " that the runtime alone needs",
            place=place,
            remedy=f"raise {most.source} to at least {_LEAST_BUDGET_BYTES // 2**20} MiB",
        )
    if text.strip().lower() == "auto":
        if now is None:
            raise BudgetError(
                "this machine does not tell how much memory is available", place=place, remedy="write a size: 2.5 GiB"
            )
        return _checked(
            int(now.size_bytes * _AUTO_SHARE), f"60 % of {now.size_bytes / 2**20:,.0f} MiB ({now.source})", place
        )
    if found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text):
        share = float(found.group(1))
        if not 0 < share <= 100:
            raise ConfigError(f"{share:g}% is outside 0 to 100", place=place, remedy="write 60%")
        if most is None:
            raise BudgetError(
                "this machine does not tell how much memory it has", place=place, remedy="write a size: 2.5 GiB"
            )
        return _checked(
            int(most.size_bytes * share / 100),
            f"{text.strip()} of {most.size_bytes / 2**20:,.0f} MiB ({most.source})",
            place,
        )
    if found := re.match(r"\s*(\d+(?:\.\d+)?)\s*(?:%|per|pct)", text, re.IGNORECASE):
        meant = found.group(1) if 0 < float(found.group(1)) <= 100 else "60"
        raise ConfigError(f"{text!r} is not a budget", place=place, remedy=f"write {meant}%")
    if text.strip().lower().startswith("auto"):
        raise ConfigError(f"{text!r} is not a budget", place=place, remedy="write auto")
    size = _checked(parse_size(text, place=place), text.strip(), place)
    if most is not None and size > most.size_bytes:
        raise BudgetError(
            f"{text.strip()} is more than the {most.size_bytes / 2**20:,.0f} MiB that {most.source} allows",
            place=place,
            remedy=f"write at most {most.size_bytes // 2**20} MiB",
        )
    return size


def droppable_bytes(folder: Path) -> int:
    """Page cache in a memory cgroup that the kernel drops before it kills (inactive_file); 0 where the group does not
    tell.

    Args:
        folder: Of the cgroup.
    """
    try:
        text = (folder / "memory.stat").read_text(encoding="ascii")
    except OSError:
        return 0
    # Version 1 counts its children under total_.
    for name in ("total_inactive_file", "inactive_file"):
        if found := re.search(rf"^{name} (\d+)$", text, re.MULTILINE):
            return int(found.group(1))
    return 0


def _rlimits(root: Path, pid: int | str) -> list[Limit]:
    """A process' soft limits on private writable memory and on address space: allocations beyond them fail, and workers
    inherit them."""
    path = root / "proc" / str(pid) / "limits"
    try:
        text = path.read_text(encoding="ascii")
    except OSError:
        return []
    found = re.findall(rf"^({'|'.join(_RLIMITS)}) +(\d+) ", text, re.MULTILINE)
    return [Limit(f"{_RLIMITS[name]} ({path})", int(value)) for name, value in found]


def _checked(size_bytes: int, what: str, place: str) -> int:
    if size_bytes < _LEAST_BUDGET_BYTES:
        raise BudgetError(
            f"{what} is {size_bytes / 2**20:,.0f} MiB, "
            f"less than the {_LEAST_BUDGET_BYTES // 2**20} MiB that the runtime alone needs",
            place=place,
            remedy=f"write at least {_LEAST_BUDGET_BYTES // 2**20} MiB",
        )
    return size_bytes
