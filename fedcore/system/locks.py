# SPDX-License-Identifier: Apache-2.0
"""A folder has one owner: a second process that would write there is refused, and told who the first is; or it waits
its turn."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fedcore.errors import RunError

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["owned", "turn"]

_MOST_BYTES = 200


@contextlib.contextmanager
def owned(folder: Path, owner: str, *, remedy: str) -> Iterator[None]:
    """Have a folder for oneself. The kernel gives the lock back when the process ends, however it ends.

    Args:
        folder: It is made if it is not there; its file `.lock` names the owner.
        owner: Who has it, for whoever comes second.
        remedy: What the second one can do.

    Raises:
        RunError: Somebody has it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, owned(Path(folder), "node kitchen", remedy="wait"):
        ...     (Path(folder) / ".lock").read_text().startswith("node kitchen, process ")
        True
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                other = file.read(_MOST_BYTES).strip() or "another process"
                raise RunError(f"{other} works in this folder", place=str(folder), remedy=remedy) from None
        file.truncate(0)
        file.write(f"{owner}, process {os.getpid()}")
        file.flush()
        yield


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process has its turn in a folder. The kernel ends a turn when the process ends.

    Args:
        folder: It is made if it is not there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, turn(Path(folder) / "models"):
        ...     (Path(folder) / "models" / ".turn").exists()
        True
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".turn").open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
