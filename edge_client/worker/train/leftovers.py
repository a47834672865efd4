# SPDX-License-Identifier: Apache-2.0
"""What an earlier run left in a node's folder: a node serves run after run, and nothing of one may steer the next."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedcore.system.durable import write_durably

__all__ = ["forget_other_runs"]


def forget_other_runs(folder: Path, run: str) -> None:
    """Remove what was learned in another run; the 8-bit base and what was measured of the model stay.

    Args:
        folder: The worker's own.
        run: What tells the present run from every other, also from those of its name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     forget_other_runs(Path(name), "first")
        ...     _ = (Path(name) / "state.bin").write_bytes(b"learned")
        ...     forget_other_runs(Path(name), "first")
        ...     kept = (Path(name) / "state.bin").exists()
        ...     forget_other_runs(Path(name), "second")
        ...     kept, (Path(name) / "state.bin").exists()
        (True, False)
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "run"
    before = note.read_text(encoding="utf-8") if note.exists() else run
    if before != run:
        (folder / "state.bin").unlink(missing_ok=True)
        # Of the base what was merged goes; generation 0 is the checkpoint in 8 bits.
        merged = [path for path in (folder / "base").glob("*") if path.is_dir() and path.name != "0"]
        for path in (folder / "intervals", folder / "local", *merged):
            shutil.rmtree(path, ignore_errors=True)
    if before != run or not note.exists():
        write_durably(note, run.encode())
