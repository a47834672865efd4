# SPDX-License-Identifier: Apache-2.0
"""A mosquitto on the loopback interface with whatever settings a measurement or a test is about; nobody logs in."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

from coordinator.provisioning.broker import find_mosquitto, free_port
from fedcore.system.processes import die_with_parent

__all__ = ["Mosquitto"]

_START_SECONDS = 10.0


class Mosquitto:
    """A running mosquitto.

    Args:
        folder: For configuration and log.
        lines: Of its configuration, such as `max_queued_messages 5`; without any, queues hold 1,000 messages and
            nothing is kept on disk.
    """

    def __init__(self, folder: Path, *lines: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._port = free_port()
        self.log = folder / "mosquitto.log"
        self._config = folder / "mosquitto.conf"
        # As root mosquitto would become the user `mosquitto`, who may not read this folder.
        user = ("user root",) if os.geteuid() == 0 else ()
        self._config.write_text(
            "\n".join((f"listener {self._port} 127.0.0.1", "allow_anonymous true", *user, *lines)) + "\n"
        )
        self.start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self._port

    @property
    def url(self) -> str:
        """Address for job and node files."""
        return f"mqtt://127.0.0.1:{self._port}"

    def sections(self, user: str) -> str:
        """The `[broker]` section of a user's job or node file."""
        return f'[broker]\nurl = "{self.url}"\ninsecure = true\nusername = "{user}"\n'

    def start(self) -> None:
        """Start it, or start it again at the same address."""
        with self.log.open("ab") as log:
            command = [find_mosquitto() or "mosquitto", "-c", str(self._config)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection(self.address, 1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"mosquitto did not come up: {self.log.read_text(errors='replace')[-500:]}"
                    ) from None
                time.sleep(0.02)

    def kill(self) -> None:
        """End it as a crash would: what is in its memory is gone."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it and wait."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(10)
