# SPDX-License-Identifier: Apache-2.0
"""Machines for a tutorial: network namespaces with an address each, an ordinary user's home, and terminals in which
blocks of shell run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from commands import Block

__all__ = ["Machines"]

NOBODY = 65534


class Machines:
    """Namespaces joined by a cable, removed with everything in them at the end; use it as a context manager. Needs
    root.

    Nothing else can be reached from them. Each machine's commands run as the user nobody, with a home of its own. `scp`
    is a stand-in that copies between the homes, since no machine here has a server for it.

    Args:
        folder: For homes and logs; nobody must be able to reach it.
        addresses: Of each machine, two of one network of 24 bits.
        environment: Beside HOME and PATH.
    """

    def __init__(self, folder: Path, addresses: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._addresses, self._environment = addresses, environment
        self._spaces = {name: f"fedkrso-{name}-{os.getpid()}" for name in addresses}
        self._stays: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        tools = folder / "bin"
        tools.mkdir()
        (tools / "scp").write_text(self._scp())
        (tools / "scp").chmod(0o755)
        for name in addresses:
            self.home(name).mkdir()
            os.chown(self.home(name), NOBODY, NOBODY)

    def home(self, machine: str) -> Path:
        return self.folder / machine

    def run(self, block: Block, seconds: float = 900.0) -> str:
        """Run a block in its machine's first terminal, where directory and environment go on from block to block; what
        it says."""
        log = self.folder / f"{block.machine}.log"
        with log.open("ab") as file:
            start = file.tell()
            done = subprocess.run(
                self._command(block), stdout=file, stderr=file, stdin=subprocess.DEVNULL, timeout=seconds, check=False
            )
        said = log.read_bytes()[start:].decode(errors="replace")
        assert done.returncode == 0, (
            f"line {block.line} on {block.machine} ended with {done.returncode}:\n{said[-3000:]}"
        )
        return said

    def start(self, block: Block) -> None:
        """Run a block that keeps its terminal; returns when it has said something."""
        log = self._log(block)
        with log.open("ab") as file:
            process = subprocess.Popen(
                self._command(block), stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._stays[block.machine, block.text] = process
        deadline = time.monotonic() + 120
        while not log.stat().st_size:
            assert process.poll() is None and time.monotonic() < deadline, (
                f"line {block.line} on {block.machine} says nothing"
            )
            time.sleep(0.05)

    def ended(self, block: Block, seconds: float = 120.0) -> tuple[int, str]:
        """The exit code of a block that kept its terminal, and what it said."""
        code = self._stays[block.machine, block.text].wait(seconds)
        return code, self._log(block).read_text(errors="replace")

    def interrupt(self, block: Block) -> None:
        """Ctrl-C in a block's terminal."""
        os.killpg(self._stays[block.machine, block.text].pid, signal.SIGINT)

    def __enter__(self) -> Machines:
        try:
            self._lay_cable()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _lay_cable(self) -> None:
        one, two = self._spaces
        for space in self._spaces.values():
            _ip("netns", "add", space)
        _ip(
            "link",
            "add",
            "cable",
            "netns",
            self._spaces[one],
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            self._spaces[two],
        )
        for name, space in self._spaces.items():
            _ip("-n", space, "address", "add", f"{self._addresses[name]}/24", "dev", "cable")
            for device in ("cable", "lo"):
                _ip("-n", space, "link", "set", device, "up")

    def _remove(self) -> None:
        for space in self._spaces.values():
            found = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
            for pid in map(int, found.stdout.split()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)
        for process in self._stays.values():
            process.wait(120)

    def _command(self, block: Block) -> list[str]:
        home = self.home(block.machine)
        state = self.folder / f"{block.machine}.state"
        if not state.exists():
            state.touch()
            os.chown(state, NOBODY, NOBODY)
        if block.stays:
            script = f"set -e; cd {home}\n{block.text}"
        else:
            script = (
                f'set -e; cd {home}; . {state}\n{block.text}\n{{ declare -px; echo cd $(printf %q "$PWD"); }} > {state}'
            )
        path = f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        environment = {"HOME": str(home), "PATH": path, "LANG": "C.UTF-8", **self._environment}
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        variables = ["env", "--ignore-environment", *(f"{key}={value}" for key, value in environment.items())]
        return ["ip", "netns", "exec", self._spaces[block.machine], *user, *variables, "bash", "-c", script]

    def _log(self, block: Block) -> Path:
        return self.folder / f"{block.machine}-{block.line}.log"

    def _scp(self) -> str:
        cases = "\n".join(
            f'    {address}:*) to="{self.home(name)}/${{last#*:}}";;' for name, address in self._addresses.items()
        )
        return f"""#!/bin/sh -e
last=$(eval echo \\"\\${{$#}}\\")
case "$last" in
{cases}
    *) echo "no such machine: $last" >&2; exit 1;;
esac
while [ $# -gt 1 ]; do
    case "$1" in -*) ;; *) cp -rp "$1" "$to";; esac
    shift
done
    """


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def why_not() -> str:
    """Why there can be no machines here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "setpriv", "bash", "curl") if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    space = f"fedkrso-try-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", space], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)
    return "" if done.returncode == 0 else f"no network namespaces: {done.stderr.strip()}"
