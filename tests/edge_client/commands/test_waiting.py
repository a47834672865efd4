# SPDX-License-Identifier: Apache-2.0
"""Who waits at a terminal sees what is being done, and afterwards nothing of it; a pipe sees nothing."""

from __future__ import annotations

import io
import time

from edge_client.commands.waiting import Waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_line_at_a_terminal_that_is_gone_at_the_end() -> None:
    out = Terminal()
    with Waiting(out, after_seconds=0.0) as waiting:
        waiting.say("tracing: 1 of 2")
        waiting.say("tracing: 1 of 2")
        waiting.say("tracing: 2 of 2")
    assert out.getvalue() == "\r\x1b[Ktracing: 1 of 2\r\x1b[Ktracing: 2 of 2\r\x1b[K"


def test_what_takes_long_at_once_is_told_of_without_another_word() -> None:
    out = Terminal()
    with Waiting(out, after_seconds=0.05) as waiting:
        waiting.say("loading the libraries")
        assert out.getvalue() == ""
        deadline = time.monotonic() + 120
        while "loading" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert out.getvalue() == "\r\x1b[Kloading the libraries\r\x1b[K"


def test_short_waits_and_pipes_stay_silent() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    with Waiting(terminal, after_seconds=60.0) as waiting:
        waiting.say("loading")
    with Waiting(pipe, after_seconds=0.0) as waiting:
        waiting.say("loading")
    assert terminal.getvalue() == pipe.getvalue() == ""
