# SPDX-License-Identifier: Apache-2.0
"""The log: text and JSON, priorities for journald, words of strangers, a full disk."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedcore.system.logs import Line, LogWriter, journal_prefix, printable

NASTY = "ok\x1b[2J\x1b]0;title\x07\r\n<0>forged line\u202e\u2028next\ud800"


def written(line: str, form: str, encoding: str = "utf-8", **options: str) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    LogWriter(stream, form, run="r", clock=lambda: 1_700_000_000.25, **options).say(line)  # type: ignore[arg-type]
    return raw.getvalue().decode(encoding)


def test_text_is_the_words_with_who_speaks() -> None:
    assert (
        written(Line("round 3 trained", event="trained", round=3, seconds=4.0), "text", prefix="home-1: ")
        == "home-1: round 3 trained\n"
    )
    assert written("a plain word", "text") == "a plain word\n"


def test_json_has_the_promised_fields_first_and_numbers_with_units() -> None:
    line = Line(
        "round 3 trained", event="trained", round=3, seconds=4.0, loss=float("nan"), examples=None, level="warning"
    )
    found = json.loads(written(line, "json", node="home-1"))
    assert found == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "run": "r",
        "round": 3,
        "node": "home-1",
        "event": "trained",
        "message": "round 3 trained",
        "seconds": 4.0,
        "loss": None,
    }
    assert list(found)[:7] == ["time", "level", "run", "round", "node", "event", "message"]
    about = json.loads(written(Line("x", node="home-2", at=1_700_000_001.0), "json"))
    assert (about["node"], about["time"], about["event"], about["round"]) == (
        "home-2",
        "2023-11-14T22:13:21.000Z",
        "note",
        None,
    )
    assert json.loads(written("coordinator's own", "json"))["node"] is None


def test_a_number_cannot_replace_a_field() -> None:
    line = Line("x", time=1.0, run="another", message="y")
    found = json.loads(written(line, "json"))
    assert (found["run"], found["message"]) == ("r", "x") and found["time"].startswith("2023")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_strangers_words_are_one_line_that_steers_nothing(form: str, encoding: str) -> None:
    text = written(Line(f"declined é {NASTY}", event="declined", reason=NASTY), form, encoding)
    assert text.endswith("\n") and text.count("\n") == 1 and len(text.splitlines()) == 1
    assert all(c.isprintable() for c in text[:-1])
    assert "\x1b" not in text and "\u202e" not in text
    if form == "json":
        found = json.loads(text)
        assert found["message"].startswith("declined é ok?[2J") and found["message"].endswith("next?")
        assert found["reason"].startswith("ok?[2J")
    elif encoding == "ascii":
        assert text.startswith("declined ? ok?[2J")


def test_a_line_is_short() -> None:
    assert len(printable("x" * 100_000)) == 4000


def test_a_time_that_no_calendar_has_is_no_error() -> None:
    assert json.loads(written(Line("x", at=1e300), "json"))["time"].startswith("1970")


def test_a_line_is_its_words_for_whoever_wants_only_those() -> None:
    said: list[str] = []
    said.append(Line("round 1 trained", event="trained"))
    assert said == ["round 1 trained"] and f"{said[0]}!" == "round 1 trained!"


PROGRAM = """
import os, sys
from fedcore.system.logs import Line, LogWriter
about = os.fstat(1)
os.environ["JOURNAL_STREAM"] = sys.argv[1] or f"{about.st_dev}:{about.st_ino}"
log = LogWriter(sys.stdout, sys.argv[2], run="r", prefix="n: ")
log.say("fine")
log.say(Line("hot", level="warning"))
log.say(Line("over", level="error"))
"""


def lines_of(stream: str, form: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, stream, form], capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout.splitlines()


def test_journald_learns_the_priority_and_nobody_else_sees_it() -> None:
    assert lines_of("", "text") == ["<6>n: fine", "<4>n: hot", "<3>n: over"]
    # The variable is inherited by children of a service whose output goes elsewhere.
    assert lines_of("8:12345", "text") == ["n: fine", "n: hot", "n: over"]
    assert [json.loads(line)["level"] for line in lines_of("", "json")] == ["info", "warning", "error"]


def test_a_stream_without_a_file_has_no_priority() -> None:
    assert journal_prefix(io.StringIO(), {"JOURNAL_STREAM": "1:2"})("error") == ""


def test_errors_of_a_command_reach_the_journal_as_errors() -> None:
    program = (
        "import os; about = os.fstat(2); os.environ['JOURNAL_STREAM'] = f'{about.st_dev}:{about.st_ino}'; "
        "from fedcore.command import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "client", "run", "nowhere.toml"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2 and done.stderr.startswith("<3>error: nowhere.toml: no such file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_under_the_log_ends_nobody() -> None:
    handle = os.open("/dev/full", os.O_WRONLY)
    stream = io.TextIOWrapper(io.FileIO(handle, "w"), write_through=True)  # type: ignore[arg-type]
    log = LogWriter(stream, "text", run="r")
    for _ in range(3):
        log.say("lost")
    # There is room again.
    reading, writing = os.pipe()
    os.dup2(writing, handle)
    log.say("kept")
    os.close(writing)
    stream.close()
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "3 lines before this are lost: the disk under the log was full\nkept\n"


def test_a_closed_pipe_is_not_taken_for_a_full_disk() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "gone")

    with pytest.raises(BrokenPipeError):
        LogWriter(Gone(), "text", run="r").say("x")
