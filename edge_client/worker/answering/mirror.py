# SPDX-License-Identifier: Apache-2.0
"""A replica read from the disk while another process trains with it.

What the training worker keeps is never written in place: files are written beside and renamed, folders of a generation
are dropped whole. So links to its files in a folder of our own are a copy that costs nothing and that nobody changes,
and a `Replica` or a `Holding` on that folder is like any other: it believes what hashes and digests say, and what it
drops are its links. A copy that was begun in the middle of a change has another digest than the note says: it is made
again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol

from fedcore.errors import ExactnessError
from fedcore.model.base import Base
from fedcore.model.state import PublishedState
from fedcore.round.plan import ObjectKind, published_digest
from fedcore.worker.serving import Held, Load

__all__ = ["Mirrored", "artefact_of", "linked", "own_folder", "require", "take"]

_STATE = "state.bin"


class Mirrored(Protocol):
    """What a node holds, on a folder of our own: with a model that computes (`Replica`), or as numbers (`Holding`)."""

    @property
    def base(self) -> Base:
        """What it stands on."""
        ...

    @property
    def state(self) -> PublishedState:
        """What was learned on it."""
        ...

    def digest(self) -> str:
        """Of both."""
        ...

    def adopt(self, path: Path, generation: int, kind: ObjectKind, digest: str) -> None:
        """Take a published object from a file."""
        ...


def own_folder(load: Load) -> Path:
    """A folder with links to all that a node holds.

    Args:
        load: Where it lies, and where ours may.

    Raises:
        ExactnessError: A file was replaced meanwhile.
    """
    own = Path(load.scratch) / "replica"
    linked(Path(load.folder), own)
    return own


def artefact_of(load: Load) -> Path | None:
    """The file of the run's artefact, where it is there."""
    return Path(load.artefact) if load.artefact and Path(load.artefact).exists() else None


def take(mirrored: Mirrored, load: Load, held: Held) -> bool:
    """Have ours hold the node's newer state, where it stands on the same base; False: load anew.

    Raises:
        ExactnessError: What lies there is another state than the note says. The replica has to be loaded anew.
    """
    if mirrored.base.generation != held.generation:
        return False
    fetched = Path(load.scratch) / "fetched.bin"
    try:
        _link(Path(load.folder) / _STATE, fetched)
    except FileNotFoundError:
        return False
    mirrored.adopt(fetched, held.generation, "whole", held.digest)
    return True


def require(mirrored: Mirrored, held: Held) -> None:
    """Return if what was linked is what the note says, or what the plan foretells after a merge that training has made
    since.

    Raises:
        ExactnessError: What lies there is another state: it is being changed.
    """
    version, generation = mirrored.state.version, mirrored.base.generation
    if mirrored.digest() not in (held.digest, published_digest(held.plan, version, generation)):
        raise ExactnessError(
            f"what lies on the disk is not version {held.version}", place=str(mirrored.base.generation)
        )


def linked(source: Path, target: Path) -> None:
    """Make a folder hold links to all of another's files, or copies where the file system has no links; what else it
    held is dropped. A folder that is not there is empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     (Path(name) / "a" / "b").mkdir(parents=True)
        ...     _ = (Path(name) / "a" / "b" / "file").write_text("said")
        ...     linked(Path(name) / "a", Path(name) / "c")
        ...     (Path(name) / "c" / "b" / "file").read_text()
        'said'
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for folder, _, names in os.walk(source):
        place = target / Path(folder).relative_to(source)
        place.mkdir(exist_ok=True)
        for name in names:
            if not name.endswith((".part", ".new")):
                try:
                    _link(Path(folder) / name, place / name)
                except FileNotFoundError as error:
                    raise ExactnessError("a file was replaced while it was read", place=name) from error


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
