# SPDX-License-Identifier: Apache-2.0
"""What the terminal commands share: a console for every terminal, small pictures of numbers, and a page that is kept
current."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console, RenderableType

__all__ = ["Page", "ago", "bar", "clock", "day", "make_console", "megabytes", "minutes", "sparkline", "watch"]

_STEPS = "▁▂▃▄▅▆▇█"
# For terminals that know ASCII only.
_ASCII_STEPS = "_.-:=+*#"
_REFRESH_SECONDS = 0.5


def make_console() -> Console:
    """A console on the standard output; what a terminal's encoding cannot write becomes a question mark."""
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    # Words from nodes are words: no markup, no emoji, no guessed colours.
    return Console(highlight=False, markup=False, emoji=False)


def bar(share: float, width: int, *, ascii_only: bool) -> str:
    """A filled bar; beyond 1 it is full.

    Example:
        >>> bar(0.5, 4, ascii_only=True), bar(1.7, 4, ascii_only=False)
        ('##..', '████')
    """
    filled = min(width, max(0, round(width * share)))
    full, empty = "#." if ascii_only else "█░"
    return full * filled + empty * (width - filled)


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool) -> str:
    """Values as a line of blocks between their least and their largest; the last `width` of them.

    Example:
        >>> sparkline([0.2, 0.5, 0.9], 8, ascii_only=True), sparkline([0.5, 0.5], 8, ascii_only=False)
        ('_:#', '▄▄')
        >>> sparkline([], 8, ascii_only=False)
        ''
    """
    steps, shown = _ASCII_STEPS if ascii_only else _STEPS, values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    if high - low < 1e-9:
        return steps[3] * len(shown)
    return "".join(steps[round((len(steps) - 1) * (value - low) / (high - low))] for value in shown)


def minutes(seconds: float) -> str:
    """A duration as m:ss, from an hour on as h:mm:ss.

    Example:
        >>> minutes(5), minutes(724.6), minutes(3725)
        ('0:05', '12:05', '1:02:05')
    """
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def ago(seconds: float) -> str:
    """An age in one unit.

    Example:
        >>> ago(0.3), ago(75), ago(7300), ago(200_000)
        ('0 s', '75 s', '2 h', '2 d')
    """
    seconds = max(0.0, seconds)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} s"


def megabytes(size_bytes: float) -> str:
    """A size in megabytes, from a gigabyte on in those.

    Example:
        >>> megabytes(1_234_567), megabytes(3.2e9)
        ('1.2 MB', '3.20 GB')
    """
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def clock(at: float) -> str:
    """A moment's time of day, as this machine's clock shows it."""
    return _moment(at, "%H:%M:%S")


def day(at: float) -> str:
    """A moment to the minute."""
    return _moment(at, "%Y-%m-%d %H:%M")


def _moment(at: float, form: str) -> str:
    try:
        return datetime.fromtimestamp(at).astimezone().strftime(form)
    except (OverflowError, OSError, ValueError):
        return "?"


@dataclass(frozen=True)
class Page:
    """What is shown now."""

    body: RenderableType
    plain: str
    """The same for a stream: what `--json` prints, or empty."""
    key: object
    """Equal while nothing has happened: a stream gets a new block only when it differs. Times and measurements are not
    in it."""
    ended: bool
    """Nothing more will happen."""


def watch(console: Console, read: Callable[[], Page], *, as_json: bool) -> None:
    """Keep a page current until the run has ended, or until `q` or Ctrl-C.

    On a terminal the page has the screen for itself, whatever size it is given, and is left on the terminal at the end.
    A stream gets a fresh block whenever something has happened.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    if as_json or not console.is_terminal:
        _stream(console, read, as_json=as_json)
        return
    page = read()
    with _terminated(), _keys() as pressed:
        # Needed here alone: whoever looks once need not wait for it.
        from rich.live import Live

        live = Live(page.body, console=console, screen=True, auto_refresh=False, vertical_overflow="crop")
        # Not as a context manager: Ctrl-C while it starts would leave the other screen on.
        try:
            live.start(refresh=True)
            while not page.ended and not pressed(_REFRESH_SECONDS):
                page = read()
                live.update(page.body, refresh=True)
        finally:
            live.stop()
        console.print(page.body)


def _stream(console: Console, read: Callable[[], Page], *, as_json: bool) -> None:
    told: object = None
    while True:
        page = read()
        if page.key != told:
            if as_json:
                console.file.write(page.plain + "\n")
            else:
                if told is not None:
                    console.print()
                console.print(page.body)
            console.file.flush()
            told = page.key
        if page.ended:
            return
        time.sleep(_REFRESH_SECONDS)


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM leaves through the same door as all else, so that the terminal is put back."""

    def leave(number: int, _: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Waits for a key without Enter: a function that waits so many seconds and says whether `q` was pressed."""
    try:
        import termios
        import tty

        handle = sys.stdin.fileno()
        before = termios.tcgetattr(handle)
    except (ImportError, OSError, ValueError, AttributeError):
        # No keyboard: Ctrl-C alone.
        yield _no_key
        return

    def pressed(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([handle], [], [], left)[0]:
                return False
            word = os.read(handle, 64)
            if not word:
                # The terminal is gone.
                return True
            if word.lower() == b"q":
                return True
        return False

    tty.setcbreak(handle)
    try:
        yield pressed
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> bool:
    time.sleep(seconds)
    return False
