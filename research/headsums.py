# SPDX-License-Identifier: Apache-2.0
"""Sums for a head, which depend on the rows and the untouched model alone: made once for all methods of a comparison
that begin with the same."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import msgspec

from research.runs.rows import Setup

__all__ = ["HeadSums", "Spent"]


class Spent(NamedTuple):
    """What an update took to make, by the clock and in processor time."""

    seconds: float
    processor_seconds: float


class HeadSums:
    """Updates of the head's round that other runs left.

    Args:
        setup: Of the run; runs that differ in nothing that sums depend on share them.
        folder: Of the run, below that of all runs; elsewhere nothing is shared.
    """

    def __init__(self, setup: Setup, folder: Path) -> None:
        self._folder: Path | None = None
        place = Path(setup.place).parts
        if folder.parts[-len(place) :] == place:
            about = (
                *(setup.task, setup.split, setup.seed, setup.clients, setup.max_length),
                *(setup.most_train, setup.most_held, setup.pooling, setup.base, setup.model),
                *(setup.micro_batch_size, setup.allocator, setup.compute, setup.method.batch_size),
            )
            digest = hashlib.sha256(msgspec.json.encode(about)).hexdigest()[:16]
            self._folder = folder.parents[len(place) - 1] / "heads" / f"{setup.task}-{digest}"

    def fetch(self, client: str, path: Path) -> Spent | None:
        """Copy a client's update to a path; what it took when it was made, None where nobody made it."""
        if self._folder is None:
            return None
        try:
            spent = msgspec.json.decode((self._folder / f"{client}.json").read_bytes(), type=Spent)
            shutil.copyfile(self._folder / f"{client}.bin", path)
        except (OSError, msgspec.DecodeError):
            return None
        return spent

    def keep(self, client: str, path: Path, spent: Spent) -> None:
        """Leave it for others; what it took is written last, and says that the update is whole."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, content in ((f"{client}.bin", path.read_bytes()), (f"{client}.json", msgspec.json.encode(spent))):
            part = self._folder / f"{name}.part"
            part.write_bytes(content)
            part.replace(self._folder / name)
