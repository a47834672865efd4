# SPDX-License-Identifier: Apache-2.0
"""What systemd hears of a real agent, on a real datagram socket; and that a loop that does not turn is not said to
live."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.provisioning.broker import LocalBroker
from edge_client.install.notify import ServiceManager

NODE = """
node = "kitchen"
run = "t"
model_folder = "{model}"
memory_budget = "512 MiB"
folder = "{folder}/state"
[data]
source = "{folder}/mine.csv"
"""
# The handler runs in the loop's own thread, between two instructions: from then on that thread is stuck, and the
# network's is not.
STUCK = "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: time.sleep(1000)); from fedcore.command import main; main()"
WINDOW_SECONDS = 1.5


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(30)
        yield listener


def heard(manager: socket.socket, word: str) -> list[str]:
    """Everything up to a word."""
    words: list[str] = []
    while not words or word not in words[-1]:
        words.append(manager.recv(4096).decode())
    return words


def silent_for(manager: socket.socket, seconds: float) -> bool:
    manager.settimeout(seconds)
    with contextlib.suppress(TimeoutError):
        return not manager.recv(4096)
    return True


@contextlib.contextmanager
def agent(tmp_path: Path, minilm_folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "mine.csv").write_text("text,label\nhello,a\n")
    with LocalBroker(tmp_path / "broker", ["coordinator", "kitchen"], tls=True, run="t") as broker:
        path = tmp_path / "node.toml"
        path.write_text(NODE.format(model=minilm_folder, folder=tmp_path) + broker.sections("kitchen"))
        service = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(int(WINDOW_SECONDS * 1e6))}
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", STUCK, "client", "run", str(path), "--stay"],
                stdout=log,
                stderr=log,
                env={**os.environ, **service},
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_an_agent_says_that_it_is_ready_that_it_lives_and_that_it_leaves(
    tmp_path: Path, minilm_folder: Path, manager: socket.socket
) -> None:
    with agent(tmp_path, minilm_folder) as process:
        assert heard(manager, "READY=1") == ["READY=1\n"], "nothing before there is a connection"
        assert any(word.startswith("STATUS=idle: connected") for word in heard(manager, "STATUS=idle: connected"))
        began = time.monotonic()
        for _ in range(3):
            heard(manager, "WATCHDOG=1")
        assert time.monotonic() - began > 0.5 * WINDOW_SECONDS, "no flood"
        process.terminate()
        assert heard(manager, "STOPPING=1")[-1] == "STATUS=leaving\nSTOPPING=1\n"
        assert process.wait(120) == 0


def test_an_agent_whose_loop_is_stuck_misses_its_watchdog(
    tmp_path: Path, minilm_folder: Path, manager: socket.socket
) -> None:
    with agent(tmp_path, minilm_folder) as process:
        heard(manager, "WATCHDOG=1")
        process.send_signal(signal.SIGUSR1)
        # What was under way when the signal came.
        time.sleep(0.5)
        manager.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while manager.recv(4096):
                pass
        assert silent_for(manager, 2 * WINDOW_SECONDS) and process.poll() is None


def test_a_clock_that_is_set_back_does_not_stop_the_words(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    seconds = [0.0]
    service = ServiceManager(lambda: seconds[0])
    service.beat("idle")
    assert heard(manager, "WATCHDOG=1") == ["READY=1\n", "STATUS=idle\n", "WATCHDOG=1\n"]
    for seconds[0] in (5.0, 9.9, 10.1, 15.0, 20.2):
        service.beat("idle")
    service.say("round 1:\nplan")
    service.beat("training")
    service.stopping()
    service.stopping()
    service.beat("training")
    assert heard(manager, "STOPPING") == [
        "WATCHDOG=1\n",
        "WATCHDOG=1\n",
        "STATUS=training: round 1: plan\n",
        "STATUS=leaving\nSTOPPING=1\n",
    ]
    assert silent_for(manager, 0.1)


def test_a_manager_that_is_gone_does_not_end_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    service = ServiceManager()
    service.beat("idle")
    service.stopping()
    monkeypatch.delenv("NOTIFY_SOCKET")
    service = ServiceManager()
    service.beat("idle")
    service.stopping()
