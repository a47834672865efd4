# SPDX-License-Identifier: Apache-2.0
"""Reading the system's small files, which may be missing, empty, binary or refuse to be read: then the answer is None.

`Path.read_text` is not used here: on a sensor that is switched off (a power-gated thermal zone of a Jetson answers
EAGAIN) it raises TypeError from inside the decoder. A bare `read` gives an OSError, costs a third, and never blocks.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["folder_names", "read_bytes", "read_integer", "read_number", "read_text"]

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
_NUMBER = re.compile(r"[+-]?\d{1,19}(?:\.\d{1,12})?")
_PIECE = 65_536


def read_bytes(path: Path | str, limit_bytes: int = _PIECE) -> bytes | None:
    """A file's first bytes, or None.

    Args:
        path: The file.
        limit_bytes: No more than this is read: a file that is huge by mistake costs nothing.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError):
        return None
    found = b""
    try:
        while len(found) < limit_bytes and (piece := os.read(descriptor, min(_PIECE, limit_bytes - len(found)))):
            found += piece
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return found


def read_text(path: Path | str, limit_bytes: int = _PIECE) -> str | None:
    """A file's text without blanks around it, or None if there is none. A device tree's strings end with a zero
    byte."""
    found = read_bytes(path, limit_bytes)
    return None if found is None else found.decode("utf-8", "replace").strip("\0 \t\r\n") or None


def read_number(path: Path | str) -> float | None:
    """The one number that a file holds, or None.

    Example:
        >>> read_number("/proc/no-such-file") is None
        True
    """
    text = read_text(path, 64)
    return float(text) if text is not None and _NUMBER.fullmatch(text) else None


def read_integer(path: Path | str) -> int | None:
    """The one whole number that a file holds, or None."""
    number = read_number(path)
    return int(number) if number is not None and number.is_integer() else None


def folder_names(folder: Path | str, prefix: str = "") -> list[str] | None:
    """Names in a folder, `zone2` before `zone10`; None if there is no such folder."""
    try:
        names = [entry.name for entry in Path(folder).iterdir() if entry.name.startswith(prefix)]
    except (OSError, ValueError):
        return None
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]
