# SPDX-License-Identifier: Apache-2.0
"""A service manager of a test: what `fedkrso client upgrade --prepare` tells systemd, for a machine without it.

    python manager.py restart|stop|alive PLACE

PLACE has `slots`, `node.toml`, and the judge's path in `base`. `restart` ends with 0 once the agent has sent READY."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 120.0


def main(word: str, place: Path) -> int:
    pid = place / "pid"
    running = int(pid.read_text()) if pid.exists() else 0
    if word == "alive":
        return 0 if running and _lives(running) else 3
    if running and _lives(running):
        os.kill(running, signal.SIGTERM)
        _until(lambda: not _lives(running))
    if word == "stop":
        return 0
    judge = [(place / "base").read_text(), "client", "upgrade", "--slots", str(place / "slots")]
    subprocess.run([*judge, "--settle"], check=True)
    (place / "notify").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, (place / "log").open("ab") as log:
        listener.bind(str(place / "notify"))
        listener.settimeout(0.1)
        command = [str(place / "slots/current/bin/fedkrso"), "client", "run", str(place / "node.toml"), "--stay"]
        environment = {**os.environ, "NOTIFY_SOCKET": str(place / "notify")}
        agent = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        pid.write_text(str(agent.pid))
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and agent.poll() is None:
            try:
                if b"READY=1" in listener.recv(4096):
                    subprocess.run([*judge, "--reported"], check=True)
                    return 0
            except TimeoutError:
                continue
        return 1


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)


if __name__ == "__main__":
    # What is installed is meant, not the checkout.
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
