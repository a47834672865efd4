# SPDX-License-Identifier: Apache-2.0
"""Which kind of device this is. The table is all that knows the kinds; a new one is a file with `detect` and a line
here."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from devices.base import Device, Host
from devices.kinds import jetson, laptop, linux, macos, raspberry_pi, simulated
from devices.programs import RunProgram, run_nothing, run_program

__all__ = ["KINDS", "detect"]

# The most special first: a Jetson is a Linux machine, and a Raspberry Pi with a battery board is no laptop.
KINDS: Final[tuple[Callable[[Host], Device | None], ...]] = (
    simulated.detect,
    macos.detect,
    jetson.detect,
    raspberry_pi.detect,
    laptop.detect,
)


def detect(
    root: Path = Path("/"), run: RunProgram | None = None, *, clock: Callable[[], float] = time.monotonic
) -> Device:
    """The device that this is, ready to be read.

    It takes some milliseconds, and up to a few seconds where `nvidia-smi` hangs; reading it later never waits for a
    program.

    Args:
        root: Of the file system; another folder shows another machine's files.
        run: Runs the programs that are asked; left out, real ones on this machine and none for another root.
        clock: Seconds, never backwards.

    Example:
        >>> device = detect()
        >>> device.facts.name != "" and device.read().temperatures_celsius is not None
        True
    """
    here = root == Path("/")
    path = shutil.which("tegrastats") if here and run is None else None
    host = Host(
        root,
        run if run is not None else (run_program if here else run_nothing),
        (path,) if path is not None else (),
        clock,
        platform.machine() if here else None,
    )
    for kind in KINDS:
        if (device := kind(host)) is not None:
            return device
    return linux.detect(host)
