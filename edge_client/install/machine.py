# SPDX-License-Identifier: Apache-2.0
"""What has to be known of a device before a service can be planned for it, and the one way in which its programs are
called."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedcore.errors import ConfigError

__all__ = ["Called", "Machine", "Runner", "look", "run_program"]

_PROGRAM_SECONDS = 120.0
# For a root folder that is not running: what its systemd can do is not asked, and this is what every supported system
# has.
_LEAST_SYSTEMD = 245


@dataclass(frozen=True)
class Called:
    """What a program answered."""

    code: int
    output: str


Runner = Callable[[Sequence[str]], Called]


@dataclass(frozen=True)
class Machine:
    """A device.

    Attributes:
        root: Stands for `/`; another folder is a system that does not run, such as a mounted card.
        systemd: Version of systemd.
        groups: Groups that there are.
        is_root: Whether we may give files to others.
    """

    root: Path
    systemd: int
    groups: frozenset[str]
    is_root: bool

    @property
    def running(self) -> bool:
        """Whether it is this very machine, with services that can be started."""
        return self.root == Path("/")

    def path(self, path: Path) -> Path:
        """Where a path of the device lies now."""
        return self.root / path.relative_to("/")


def look(root: Path, runner: Runner, *, user: bool) -> Machine:
    """Find out about a device.

    Raises:
        ConfigError: It has no systemd, or we lack the rights.
    """
    running, is_root = root == Path("/"), os.geteuid() == 0
    if running and not (root / "run/systemd/system").is_dir():
        raise ConfigError(
            "systemd does not run here",
            place="fedkrso client install",
            remedy="start `fedkrso client run NODE.toml --stay` by your own means, "
            "or write --root DIR for a system that is not running",
        )
    if running and user and runner(("systemctl", "--user", "show-environment")).code != 0:
        raise ConfigError(
            "your own systemd cannot be reached",
            place="--user",
            remedy="log in on the device itself or with ssh, not with su or sudo",
        )
    if running and not user and not is_root:
        raise ConfigError(
            "only root may install a service of the device",
            place="fedkrso client install",
            remedy="use sudo, or --user",
        )
    return Machine(root, _version(runner) if running else _LEAST_SYSTEMD, _groups(root), is_root)


def run_program(arguments: Sequence[str]) -> Called:
    """Run a program to its end; what it says, on both streams together."""
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_PROGRAM_SECONDS,
        )
    except FileNotFoundError:
        return Called(127, f"{arguments[0]}: not found")
    except subprocess.TimeoutExpired:
        return Called(124, f"{arguments[0]}: no answer within {_PROGRAM_SECONDS:.0f} s")
    return Called(done.returncode, done.stdout)


def _version(runner: Runner) -> int:
    found = re.match(r"systemd (\d+)", runner(("systemctl", "--version")).output)
    return int(found.group(1)) if found else _LEAST_SYSTEMD


def _groups(root: Path) -> frozenset[str]:
    """Of the file alone: services' groups are there, whatever a directory server knows."""
    try:
        lines = (root / "etc/group").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(line.partition(":")[0] for line in lines if line)
