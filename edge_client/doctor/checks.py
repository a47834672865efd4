# SPDX-License-Identifier: Apache-2.0
"""All checks in order, each group under its limit, and the table for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from edge_client.doctor.base import Check, Group, Surroundings, within
from edge_client.doctor.compute import LOAD_SECONDS, compute, worker
from edge_client.doctor.machine import clock, device
from edge_client.doctor.memory import memory
from edge_client.doctor.node import node_file, node_parts
from edge_client.doctor.software import software
from edge_client.doctor.system import network, service, storage
from edge_client.node import Node

__all__ = ["as_text", "examine"]

# A probe of each way of computing has limits of its own; together they stay below this.
_GROUPS: tuple[tuple[str, float, Group], ...] = (
    ("software", 30.0, software),
    ("device", 30.0, device),
    ("memory", 60.0, memory),
    ("compute", 1800.0, compute),
    ("node", 720.0, node_parts),
    ("storage", 30.0, storage),
    ("clock", 30.0, clock),
    ("network", 60.0, network),
    ("service", 30.0, service),
)
_MARKS = {"ok": "ok", "warning": "warning", "error": "ERROR"}


def examine(around: Surroundings, progress: Callable[[str], None] = lambda words: None) -> Iterator[Check]:
    """Every check's finding, group after group.

    A worker's libraries are loaded meanwhile, and are there before anything is measured.

    Args:
        around: The machine.
        progress: Called with what is looked at now.
    """
    node: Node | None = None
    if around.node_file is not None:
        node, check = node_file(around.node_file)
        yield check
    with ThreadPoolExecutor(1) as beside:
        loading = beside.submit(within, LOAD_SECONDS + 10.0, "compute", partial(worker, around))
        for name, seconds, look in _GROUPS:
            if look is compute:
                progress("doctor: loading a worker's libraries")
                yield from loading.result()
            progress(f"doctor: {name}")
            yield from within(seconds, name, partial(look, around, node))


def as_text(checks: Sequence[Check]) -> str:
    """A table, with the remedy below what needs one.

    Example:
        >>> date = Check("clock", "date", "ok", "2026")
        >>> print(as_text([date, Check("clock", "synchronised", "warning", "no", "set it")]))
        clock
          ok       date          2026
          warning  synchronised  no
                                 -> set it
    """
    width = max((len(check.check) for check in checks), default=0)
    lines: list[str] = []
    group = None
    for check in checks:
        if check.group != group:
            lines += [""] * bool(lines) + [check.group]
            group = check.group
        lines.append(f"  {_MARKS[check.state]:7}  {check.check:{width}}  {check.found}")
        if check.remedy and check.state != "ok":
            lines.append(f"{'':{width + 13}}-> {check.remedy}")
    return "\n".join(lines)
