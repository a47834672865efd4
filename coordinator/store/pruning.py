# SPDX-License-Identifier: Apache-2.0
"""What of a finished run's folder can go: what nobody needs to look at the run, to export any round that can be
exported now, to try its model, or to give it more rounds."""

from __future__ import annotations

import shutil
from pathlib import Path

from coordinator.store.folder import RunFolder

__all__ = ["leftovers", "prune"]


def leftovers(folder: RunFolder, version: int, *, updates_count_later: bool) -> list[Path]:
    """Files and folders that can go.

    Args:
        folder: A finished run's.
        version: Its last one; more rounds begin from its exact state.
        updates_count_later: Whether an update that is there may count in a round that is still to come, as in buffered
            rounds.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     folder = RunFolder(Path(root))
        ...     for path in (folder.state(5), folder.state(6), folder.update(6, "n")):
        ...         path.parent.mkdir(parents=True, exist_ok=True)
        ...         _ = path.write_bytes(b"123")
        ...     [path.name for path in leftovers(folder, 6, updates_count_later=False)]
        ['updates', '5.npz']
    """
    # The evaluator's base and that of an exported round are made anew from the model's folder and what was published.
    found = [folder.evaluator, folder.exported_base, *folder.abandoned()]
    if not updates_count_later:
        found.append(folder.updates)
    last = folder.state(version)
    found += sorted(path for path in last.parent.glob("*.npz") if path != last) if last.exists() else []
    return [path for path in found if path.exists()]


def prune(paths: list[Path]) -> None:
    """Delete what `leftovers` named."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
