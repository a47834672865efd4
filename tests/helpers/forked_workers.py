# SPDX-License-Identifier: Apache-2.0
"""Workers that start at once: forked from a process that has torch and the rest loaded, instead of loading them anew.

For tests that start many workers. The program that runs is the worker's own (`edge_client.worker`); only its
interpreter's start is saved. A small stand-in process sits where the agent expects its child: it dies with its worker
and the worker with it, by the same signal. What is asked of a process from its first instruction on (limits of its
memory, the allocator's settings) is the stand-in's, so that tests of those start workers in earnest.

    agent ──starts──> stand-in ──unix socket, file descriptors──> parent ──forks──> keeper ──forks──> worker
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from fedcore.system.processes import WORKER_PYTHON, die_with_parent

__all__ = ["ForkedWorkers"]

Main = Callable[[BinaryIO, BinaryIO], None]
"""The worker's program, from its two pipes on."""

# Starts in some 20 ms: no site packages, nothing but the standard library.
_STAND_IN = """#!{python} -SE
import array, json, os, signal, socket, struct, sys
if sys.argv[1:3] != ["-m", "edge_client.worker"]:
    os.execv("{python}", ["{python}", *sys.argv[1:]])
link = socket.socket(socket.AF_UNIX)
link.connect(os.path.join(os.path.dirname(os.path.abspath(__file__)), "socket"))
fds = array.array("i", [int(sys.argv[3]), int(sys.argv[4]), 2])
link.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
asked = json.dumps([os.getcwd(), dict(os.environ)]).encode()
link.sendall(struct.pack("<i", len(asked)) + asked)
for fd in fds[:2]:
    os.close(fd)
said = link.recv(4)
code = struct.unpack("<i", said)[0] if len(said) == 4 else 1
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class ForkedWorkers:
    """A running parent of workers.

    Args:
        folder: Its own, with a short path (a socket lies in it).
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.executable = folder / "python"
        """What `FEDKRSO_WORKER_PYTHON` is to name."""
        self.executable.write_text(_STAND_IN.format(python=sys.executable))
        self.executable.chmod(0o700)
        (folder / "socket").unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder / "socket")],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            preexec_fn=die_with_parent,
        )
        # As long as it takes: on a busy machine its libraries load for minutes.
        while not (folder / "socket").exists():
            assert self._process.poll() is None, "the parent of forked workers did not come up"
            time.sleep(0.02)

    @property
    def environment(self) -> dict[str, str]:
        """To be added to the environment of whoever starts workers."""
        return {WORKER_PYTHON: str(self.executable)}

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _serve(path: str) -> None:
    # Everything a worker needs, also what it would load on its first model.
    import transformers.models.bert.modeling_bert

    from edge_client.worker import __main__ as worker
    from edge_client.worker.answering import full
    from edge_client.worker.programs import answer, serve
    from edge_client.worker.programs.lean import hide_optional_packages

    hide_optional_packages()
    del transformers, answer, full, serve
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{path}.new")
    server.listen(16)
    os.rename(f"{path}.new", path)
    while True:
        link, _ = server.accept()
        if os.fork() == 0:
            server.close()
            _keep(link, worker.main)
        link.close()


def _keep(link: socket.socket, main: Main) -> None:
    """In a process between the parent of workers and a worker: start the worker, and end it when its stand-in ends."""
    import select

    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, fds, _, _ = socket.recv_fds(link, 1, 3)
    (length,) = struct.unpack("<i", link.recv(4, socket.MSG_WAITALL))
    where, environment = json.loads(link.recv(length, socket.MSG_WAITALL))
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        link.close()
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = [
            entry for entry in environment.get("PYTHONPATH", "").split(":") if entry and entry not in sys.path
        ]
        _work(where, fds, main)
    for fd in fds:
        os.close(fd)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, link.fileno()], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        link.sendall(struct.pack("<i", code))
    os._exit(0)


def _work(where: str, fds: list[int], main: Main) -> None:
    import traceback

    code = 1
    try:
        os.chdir(where)
        os.dup2(fds[2], 1)
        os.dup2(fds[2], 2)
        main(os.fdopen(fds[0], "rb"), os.fdopen(fds[1], "wb"))
        code = 0
    except BaseException:  # noqa: BLE001 - as in the worker's own start: it goes to the log
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
