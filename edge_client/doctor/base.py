# SPDX-License-Identifier: Apache-2.0
"""What every check sees, and what it says."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from devices.base import Device
from devices.programs import RunProgram, run_program
from edge_client.memory.group import MemoryGroup, confine
from edge_client.node import Node
from edge_client.process.route import Part
from edge_client.process.route_probe import measured_part
from fedcore.config.sections import BrokerSection
from fedcore.errors import FedkrsoError

__all__ = ["Check", "Group", "State", "Surroundings", "refused", "within"]

State = Literal["ok", "warning", "error"]


class Check(msgspec.Struct, frozen=True):
    """What one check found, and what to do about it."""

    group: str
    check: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Surroundings:
    """The machine as the checks see it; a test shows another one."""

    device: Device
    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    run: RunProgram = run_program
    node_file: Path | None = None
    broker: BrokerSection | None = None
    """Given by flags; else the node file's counts."""
    quick: bool = False
    """Leave out what takes more than a moment: nothing is measured, no library is loaded."""
    again: bool = False
    """Measure anew what is remembered."""
    clock: Callable[[], float] = lambda: 0.0
    """Unix seconds."""
    probe: Callable[[str, int, Mapping[str, str]], Part] = measured_part
    confine: Callable[[int, str, Path], MemoryGroup] = confine
    services: bool = True
    """Whether the service manager may be asked."""


Group = Callable[[Surroundings, Node | None], Sequence[Check]]


def refused(group: str, name: str, error: FedkrsoError) -> Check:
    """An error of ours as a finding."""
    found = f"{error.place}: {error.message}" if error.place else error.message
    return Check(
        group, name, "error", found, error.remedy or "mend what is named there; docs/files.md explains each key"
    )


def within(seconds: float, group: str, act: Callable[[], Sequence[Check]]) -> list[Check]:
    """The findings of a group, or that it did not end in time, or how it failed: a check must not end the doctor.

    Args:
        seconds: The limit; what still runs then is left behind.
        group: Its name.
        act: Looks.

    Example:
        >>> within(1.0, "x", lambda: [Check("x", "y", "ok", "z")])[0].state
        'ok'
    """
    found: list[Check] = []

    def look() -> None:
        try:
            found.extend(act())
        except FedkrsoError as error:
            found.append(refused(group, group, error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checks go on
            found.append(
                Check(
                    group,
                    group,
                    "error",
                    f"{type(error).__name__}: {error}".splitlines()[0],
                    "report this as a fault of fedkrso",
                )
            )

    thread = threading.Thread(target=look, name=f"doctor {group}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [
            *found,
            Check(
                group,
                group,
                "error",
                f"no answer within {seconds:.0f} s",
                "something hangs there: a disk, a driver, a network",
            ),
        ]
    return found
