# SPDX-License-Identifier: Apache-2.0
"""The log: one line an event, as text for people or as JSON for journald and collectors.

What happens is told as a `Line`: words for a person that also know their stable name, level, round and numbers. Whoever
only wants words takes it for the `str` that it is. Levels are `info`, `warning` (somebody may have to do something) and
`error` (it ends here)."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, Final, Literal, TextIO

from fedcore.system.durable import is_full

__all__ = ["LOG_FORMATS", "Level", "Line", "LogFormat", "LogWriter", "journal_prefix", "printable"]

LogFormat = Literal["text", "json"]
Level = Literal["info", "warning", "error"]
LOG_FORMATS: Final[tuple[LogFormat, ...]] = ("text", "json")
# As sd-daemon(3) counts them: a line that begins so has this priority in the journal.
_PRIORITIES: Final[dict[Level, int]] = {"error": 3, "warning": 4, "info": 6}
_MOST_CHARACTERS = 4000


class Line(str):
    """Something that happened, in words, with what a machine wants to know of it.

    Args:
        message: One line for a person.
        event: Its stable name, for filters: `trained`, `declined`, `round_opened`, ...
        level: Who should look at it.
        round: The round it is about.
        node: The node it is about; by default the one that writes.
        at: Unix seconds at which it happened; by default when it is written.
        numbers: Values with their unit in the name; None is left out.

    Example:
        >>> line = Line("round 3 trained in 4.0 s", event="trained", round=3, seconds=4.0)
        >>> line.event, line.round, line.numbers, line == "round 3 trained in 4.0 s"
        ('trained', 3, {'seconds': 4.0}, True)
    """

    __slots__ = ("at", "event", "level", "node", "numbers", "round")

    def __new__(
        cls,
        message: str,
        /,
        *,
        event: str = "note",
        level: Level = "info",
        round: int | None = None,  # noqa: A002 (the field's name in the log)
        node: str = "",
        at: float | None = None,
        **numbers: float | str | None,
    ) -> Line:
        """See the class."""
        line = super().__new__(cls, message)
        line.event, line.level, line.round, line.node, line.at = event, level, round, node, at
        line.numbers = {name: value for name, value in numbers.items() if value is not None}
        return line

    event: str
    level: Level
    round: int | None
    node: str
    at: float | None
    numbers: Mapping[str, float | str]


class LogWriter:
    """Writes lines to a stream, each in one piece.

    A full disk under the log ends nobody: what could not be written is counted, and the count is told as soon as there
        is room.

    Args:
        stream: Where to.
        form: `text`, or `json` with one object a line.
        run: The run that all lines are about.
        node: The node that writes; empty for the coordinator.
        prefix: Before every text line: who speaks, where several write into one terminal.
        clock: Unix seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        form: LogFormat,
        *,
        run: str,
        node: str = "",
        prefix: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stream, self._form, self._run, self._node, self._prefix, self._clock = (
            stream,
            form,
            run,
            node,
            prefix,
            clock,
        )
        self._journal = journal_prefix(stream, os.environ)
        self._lost = 0

    def say(self, line: str) -> None:
        """Write a line; a plain `str` is a note."""
        told = line if isinstance(line, Line) else Line(line)
        try:
            if self._lost:
                text = f"{self._lost} lines before this are lost: the disk under the log was full"
                self._write(Line(text, event="log_lost", level="warning", lines=self._lost))
                self._lost = 0
            self._write(told)
        except OSError as error:
            if not is_full(error):
                raise
            self._lost += 1

    def _write(self, line: Line) -> None:
        self._stream.write(f"{self._object(line) if self._form == 'json' else self._text(line)}\n")
        self._stream.flush()

    def _text(self, line: Line) -> str:
        text = f"{self._journal(line.level)}{self._prefix}{printable(line)}"
        encoding = self._stream.encoding or "utf-8"
        return text.encode(encoding, "replace").decode(encoding)

    def _object(self, line: Line) -> str:
        fields: dict[str, Any] = {
            "time": _rfc3339(self._clock() if line.at is None else line.at),
            "level": line.level,
            "run": self._run,
            "round": line.round,
            "node": printable(line.node or self._node) or None,
            "event": line.event,
            "message": printable(line),
        }
        for name, value in line.numbers.items():
            fields.setdefault(
                name, printable(value) if isinstance(value, str) else value if math.isfinite(value) else None
            )
        # JSON is UTF-8; a stream that is not gets the same object in ASCII.
        utf8 = (self._stream.encoding or "utf-8").lower().replace("-", "") == "utf8"
        return json.dumps(fields, ensure_ascii=not utf8)


def journal_prefix(stream: TextIO, environment: Mapping[str, str]) -> Callable[[Level], str]:
    """What journald takes as a line's priority, `<4>` for a warning; nothing where the stream does not lead to
    journald.

    systemd names the stream that it listens to by device and inode, since a service's child may write elsewhere.
    """
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return lambda level: ""
    if environment.get("JOURNAL_STREAM", "") != f"{about.st_dev}:{about.st_ino}":
        return lambda level: ""
    return lambda level: f"<{_PRIORITIES[level]}>"


def printable(text: str) -> str:
    """Words as one line that can neither steer a terminal nor make a second log entry.

    Example:
        >>> printable("no room" + chr(27) + "[2J" + chr(10) + "<3>left")
        'no room?[2J <3>left'
    """
    line = " ".join(text[: 2 * _MOST_CHARACTERS].split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 3]}..."


def _rfc3339(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, OSError, ValueError):
        # A time that a stranger made up.
        return "1970-01-01T00:00:00.000Z"
