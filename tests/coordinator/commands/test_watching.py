# SPDX-License-Identifier: Apache-2.0
"""`fedkrso status --watch` and `fedkrso nodes --watch` in a terminal of their own: current at any size, and left as it
was found."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import running_run

fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")


class Watching:
    """`fedkrso ... --watch` in a pseudo-terminal of its own."""

    def __init__(self, *arguments: object, rows: int = 24, columns: int = 80) -> None:
        self._screen, inner = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self._screen)
        command = [sys.executable, "-c", "from fedcore.command import main; main()", *map(str, arguments)]
        environment = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, start_new_session=True, preexec_fn=_own_terminal,
            env={**environment, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        os.close(inner)
        self.text = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._screen, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def until(self, pattern: str, seconds: float = 120.0) -> str:
        """Read on until the new output has the pattern; the new output."""
        new, deadline = "", time.monotonic() + seconds
        while not re.search(pattern, new):
            assert time.monotonic() < deadline, f"no {pattern!r} in {new[-2000:]!r}"
            if select.select([self._screen], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    new += os.read(self._screen, 65536).decode(errors="replace")
        self.text += new
        return new

    def left(self, seconds: float = 120.0) -> int:
        """The exit code; what is still written is read, as a terminal does."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text[-2000:]
            if select.select([self._screen], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.text += os.read(self._screen, 65536).decode(errors="replace")
        while select.select([self._screen], [], [], 0.05)[0]:
            try:
                self.text += os.read(self._screen, 65536).decode(errors="replace")
            except OSError:
                break
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._screen)


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def watching(*arguments: object) -> Iterator[Watching]:
    found = Watching(*arguments)
    try:
        yield found
    finally:
        found.close()


# The alternate screen, and back; the cursor, and back.
ENTERED, LEFT, HIDDEN, SHOWN = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25l", "\x1b[?25h"


def is_put_back(screen: Watching) -> None:
    assert screen.text.count(ENTERED) == screen.text.count(LEFT) == 1
    assert screen.text.rindex(SHOWN) > screen.text.rindex(HIDDEN)


def test_a_watched_run_is_current_takes_any_size_and_is_left_with_q(tmp_path: Path) -> None:
    with (
        running_run(tmp_path, "live") as (view, picture),
        watching("status", "live", "--runs", tmp_path, "--watch") as screen,
    ):
        screen.until("round 3 of 6 is open")
        modes = termios.tcgetattr(screen._screen)
        view.round, view.accepted = 4, ()
        picture._next_at = 0.0
        picture.show(view)
        screen.until("round 4 of 6 is open")
        screen.resize(12, 50)
        screen.until("round 4 of 6")
        screen.resize(40, 132)
        narrow = screen.until("round 4 of 6")
        assert "live" in narrow
        screen.press("x")
        screen.until("round 4 of 6")
        assert screen.process.poll() is None, "another key does nothing"
        screen.press("q")
        assert screen.left() == 0
        is_put_back(screen)
        assert not modes[3] & termios.ICANON and termios.tcgetattr(screen._screen)[3] & termios.ICANON
        # The last page stays where one was.
        assert "round 4 of 6 is open" in screen.text[screen.text.rindex(LEFT) :]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_the_terminal_as_it_was(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with running_run(tmp_path, "live"), watching("nodes", "live", "--runs", tmp_path, "--watch") as screen:
        screen.until("home-1")
        if number == signal.SIGINT:
            screen.press("\x03")
        else:
            screen.process.send_signal(number)
        assert screen.left() == code
        is_put_back(screen)
        assert termios.tcgetattr(screen._screen)[3] & termios.ICANON and "Traceback" not in screen.text


def test_watching_ends_with_the_run(tmp_path: Path) -> None:
    with contextlib.ExitStack() as end:
        end.enter_context(running_run(tmp_path, "live", rounds=2))
        with watching("status", "--runs", tmp_path, "--watch") as screen:
            screen.until("round 2 of 2 is open")
            end.close()
            assert screen.left() == 0
            is_put_back(screen)
            assert "live  fedkrso  finished" in re.sub(r"\x1b\[[0-9;]*m", "", screen.text[screen.text.rindex(LEFT) :])


def test_a_stream_gets_a_fresh_block_when_something_happens(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from fedcore.command import main; main()",
        "status",
        "--runs",
        str(tmp_path),
        "--watch",
    ]
    with running_run(tmp_path, "live", rounds=3) as (view, picture):
        plain = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        lines = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        assert plain.stdout is not None and lines.stdout is not None
        text = plain.stdout.readline()
        assert text == "live  fedkrso  running\n"
        assert json.loads(lines.stdout.readline())["accepted"] == ["home-0"]
        for step in range(8):
            # Numbers of nodes at work are nothing that happened.
            view.nodes["home-1"].step = step
            picture._next_at = 0.0
            picture.show(view)
            time.sleep(0.15)
        view.accepted = ("home-0", "home-1")
        picture._next_at = 0.0
        picture.show(view)
        assert json.loads(lines.stdout.readline())["accepted"] == ["home-0", "home-1"]
        # Both have seen it before the run ends.
        while "2 of 2 are in" not in text:
            text += plain.stdout.readline()
    assert json.loads(lines.stdout.readline())["state"] == "finished"
    with plain.stdout, lines.stdout:
        text, last = text + plain.stdout.read(), lines.stdout.read()
    assert plain.wait(120) == lines.wait(120) == 0 and last == ""
    blocks = text.split("live  fedkrso  ")[1:]
    assert [block.split("\n")[0] for block in blocks] == ["running", "running", "finished"]
    assert "1 of 2 are in; missing: home-1" in blocks[0] and "2 of 2 are in" in blocks[1] and "\x1b" not in text
