# SPDX-License-Identifier: Apache-2.0
"""An NVIDIA GPU as `nvidia-smi` tells. It costs a process and some 50 ms of the driver's time, so it runs seldom and in
the background.

On a laptop it would also wake a GPU that sleeps, and keep it awake: a sleeping one is left alone, and an idle one is
asked rarely."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.base import Accelerator
from devices.files import folder_names, read_text
from devices.programs import RunProgram, Seldom
from fedcore.fields.checked import clean_text

__all__ = ["GpuReading", "NvidiaGpu", "parse_gpus"]

_FIELDS = ("name", "memory.total", "memory.free", "utilization.gpu", "temperature.gpu", "power.draw")
_REASONS = "clocks_throttle_reasons.active"
_TIMEOUT_SECONDS = 4.0
_BUSY_PAUSE_SECONDS, _IDLE_PAUSE_SECONDS = 5.0, 30.0
# What slows the GPU below what its settings allow. A power limit of its own (0x4) is how every loaded GPU works, and no
# throttling.
_SLOWDOWNS = {0x20: "heat", 0x40: "heat", 0x80: "power brake", 0x8: "hardware slowdown"}
_PLAIN = re.compile(r"-?\d{1,12}(?:\.\d{1,6})?")
_NVIDIA = "0x10de"


@dataclass(frozen=True)
class GpuReading:
    """One GPU; None is what it does not tell (`[N/A]`, `[Not Supported]`)."""

    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    percent: float | None = None
    celsius: float | None = None
    watts: float | None = None
    slow_reason: str | None = None
    """Why it is slowed down, empty if it is not."""


def parse_gpus(text: str) -> list[GpuReading]:
    """What `--format=csv,noheader,nounits` printed, one line a GPU.

    Example:
        >>> parse_gpus("Orin (nvgpu), [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]")  # doctest: +ELLIPSIS
        [GpuReading(name='Orin (nvgpu)', total_bytes=None, ..., slow_reason=None)]
    """
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < len(_FIELDS) or not cells[0]:
            continue
        total, free, percent, celsius, watts = (_number(cell) for cell in cells[1 : len(_FIELDS)])
        total_bytes, free_bytes = _bytes(total), _bytes(free)
        if total_bytes is not None and free_bytes is not None and free_bytes > total_bytes:
            total_bytes = free_bytes = None
        reason = _slow_reason(cells[len(_FIELDS)]) if len(cells) > len(_FIELDS) else None
        found.append(
            GpuReading(clean_text(cells[0])[:80], total_bytes or None, free_bytes, percent, celsius, watts, reason)
        )
    return found


class NvidiaGpu:
    """The first NVIDIA GPU of a machine.

    Args:
        accelerator: What it is.
        first: What it said when it was found.
        ask: Finds what it says now.
        root: Of the file system.
        clock: Seconds, never backwards.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        first: GpuReading,
        ask: Callable[[], GpuReading | None],
        root: Path,
        clock: Callable[[], float],
    ) -> None:
        self.accelerator = accelerator
        self._states = _power_states(root)
        self._seldom = Seldom(ask, _pause_seconds, first=first, clock=clock)

    @classmethod
    def found(
        cls, root: Path, run: RunProgram, clock: Callable[[], float], *, unified: bool = False
    ) -> NvidiaGpu | None:
        """The GPU, if there is one and its driver answers.

        Args:
            root: Of the file system.
            run: Runs `nvidia-smi`.
            clock: Seconds, never backwards.
            unified: Whether it shares the system's memory.
        """

        def ask(fields: Sequence[str]) -> GpuReading | None:
            text = run(
                ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"], _TIMEOUT_SECONDS
            )
            return next(iter(parse_gpus(text or "")), None)

        # A driver that does not know one of the fields answers nothing at all.
        for fields in ((*_FIELDS, _REASONS), _FIELDS):
            if (first := ask(fields)) is not None:
                break
        else:
            return None
        capability = run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], _TIMEOUT_SECONDS)
        version = re.match(r"(\d{1,2})\.(\d)\s*$", capability.splitlines()[0]) if capability else None
        accelerator = Accelerator(
            first.name,
            unified,
            (int(version.group(1)), int(version.group(2))) if version else None,
            None if unified else first.total_bytes,
        )
        return cls(accelerator, first, lambda: ask(fields), root, clock)

    def read(self) -> GpuReading | None:
        """At most a few pauses old; None if it does not answer, or sleeps."""
        if self._states and all(read_text(path, 32) == "suspended" for path in self._states):
            return None
        return self._seldom.latest()


def _pause_seconds(found: GpuReading) -> float:
    return _IDLE_PAUSE_SECONDS if found.percent == 0 else _BUSY_PAUSE_SECONDS


def _power_states(root: Path) -> list[str]:
    """Files that say whether an NVIDIA display controller sleeps."""
    folder = root / "sys/bus/pci/devices"
    return [
        str(folder / name / "power/runtime_status")
        for name in folder_names(folder) or ()
        if read_text(folder / name / "vendor", 32) == _NVIDIA
        and (read_text(folder / name / "class", 32) or "").startswith("0x03")
    ]


def _slow_reason(cell: str) -> str | None:
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,16}", cell):
        return None
    bits = int(cell, 16)
    return next((f"{reason} (gpu)" for bit, reason in _SLOWDOWNS.items() if bits & bit), "")


def _number(cell: str) -> float | None:
    return float(cell) if _PLAIN.fullmatch(cell) else None


def _bytes(mebibytes: float | None) -> int | None:
    return None if mebibytes is None or not 0 <= mebibytes < 2**32 else int(mebibytes * 2**20)
