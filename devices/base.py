# SPDX-License-Identifier: Apache-2.0
"""What every kind of device tells: facts that stay, readings that change. One file per kind; `devices.detection` has
the table.

Everything comes from the system's own files and programs, without root. `root` stands for `/`, so that tests show
another machine's files. A file that is missing, truncated or nonsense gives None for what it would have said, never an
exception."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from devices.programs import RunProgram, run_nothing
from fedcore.device.readings import Readings

__all__ = ["Accelerator", "Device", "Facts", "Host"]


@dataclass(frozen=True)
class Host:
    """Where a device is looked for, and with what."""

    root: Path = Path("/")
    run: RunProgram = run_nothing
    tegrastats: tuple[str, ...] = ()
    """The command of `tegrastats`, empty where there is none."""
    clock: Callable[[], float] = time.monotonic
    machine: str | None = None
    """`aarch64`, `x86_64`, where the files do not tell."""


@dataclass(frozen=True)
class Accelerator:
    """What computes beside the processor."""

    name: str
    unified: bool
    """Whether it shares the system's memory, so that its memory is never counted a second time."""
    compute_capability: tuple[int, int] | None = None
    """Of an NVIDIA GPU: (8, 7) on Orin."""
    total_bytes: int | None = None
    """Its own memory; None where it is shared or not told."""


@dataclass(frozen=True)
class Facts:
    """What does not change while the system runs."""

    kind: str
    """The file in `devices` that knows this kind: `jetson`, `raspberry-pi`, `laptop`, `linux`, `macos`, `simulated`."""
    name: str
    """For a person: `NVIDIA Jetson Orin Nano Developer Kit`."""
    catalogue: str | None = None
    """The name in `devices.catalogue`, where this is one of them: `jetson-orin-nano-8gb`."""
    system: str | None = None
    """Operating system with version: `L4T 36.4.3 (JetPack 6.2)`, `Debian GNU/Linux 12`."""
    processor: str | None = None
    machine: str | None = None
    """`aarch64`, `x86_64`."""
    memory_total_bytes: int | None = None
    accelerator: Accelerator | None = None


class Device(Protocol):
    """One machine: what it is, and what its sensors say now."""

    @property
    def facts(self) -> Facts:
        """What it is; found once."""
        ...

    def read(self) -> Readings:
        """All sensors now; cheap enough to be called every second, and never raises."""
        ...

    def close(self) -> None:
        """End what was started to read it (a program); it can be read no more."""
        ...
