# SPDX-License-Identifier: Apache-2.0
"""Which kind of device this is. Devices of other packages (`fedcore.registry.register_device`) are asked first, then
ours by the table, which is all that knows the kinds; a new one is a file with `detect` and a line here."""

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
from fedcore.registry import DEVICES

__all__ = ["detect"]

# The most special first: a Jetson is a Linux machine, and a Raspberry Pi with a battery board is no laptop.
_OWN: Final[dict[str, Callable[[Host], Device | None]]] = {
    "simulated": simulated.detect,
    "macos": macos.detect,
    "jetson": jetson.detect,
    "raspberry-pi": raspberry_pi.detect,
    "laptop": laptop.detect,
}
for _name, _detect in _OWN.items():
    DEVICES.register(_name)(_detect)
# Never asked: it is what remains.
DEVICES.register("linux")(linux.detect)


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
    others = [ask for name, ask in DEVICES.items() if name not in (*_OWN, "linux")]
    for ask in (*others, *_OWN.values()):
        device: Device | None = ask(host)
        if device is not None:
            return device
    return linux.detect(host)
