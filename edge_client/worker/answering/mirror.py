# SPDX-License-Identifier: Apache-2.0
"""A replica read from the disk while another process trains with it.

What the training worker keeps is never written in place: files are written beside and renamed, folders of a generation
are dropped whole. So links to its files in a folder of our own are a copy that costs nothing and that nobody changes,
and a `Replica` on that folder is like any other: it believes what hashes and digests say, and what it drops are its
links. A copy that was begun in the middle of a change has another digest than the note says: it is made again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.worker.train.holding import Holding
from fedcore.errors import ExactnessError
from fedcore.round.plan import published_digest
from fedcore.worker.serving import Held, Load

if TYPE_CHECKING:
    import torch

    from edge_client.worker.train.replica import Replica

__all__ = ["linked", "linked_holding", "mirrored", "take"]

_STATE = "state.bin"


def mirrored(load: Load, held: Held, dtype: torch.dtype) -> Replica:
    """What a node holds, as a replica of our own.

    Args:
        load: Where it lies, and where ours may.
        held: What the node says that it holds.
        dtype: Of the products.

    Raises:
        ExactnessError: What lies there is another state than the note says: it is being changed.
        ModelError: The model folder does not fit.
    """
    import torch

    from edge_client.worker.train.replica import Replica

    own, folder = _linked_folder(load), Path(load.model_folder)
    device = torch.device(load.torch_device)
    replica = Replica(held.plan, folder, own, device, dtype, mapped=load.mapped, artefact=_artefact(load))
    _require(replica, held)
    replica.become(held.run, held.node)
    return replica


def linked_holding(load: Load, held: Held) -> Holding:
    """The same as numbers, without torch.

    Args:
        load: Where it lies, and where ours may.
        held: What the node says that it holds.

    Raises:
        ExactnessError: What lies there is another state than the note says: it is being changed.
        ModelError: The model folder does not fit.
    """
    holding = Holding(held.plan, Path(load.model_folder), _linked_folder(load), _artefact(load))
    _require(holding, held)
    return holding


def _linked_folder(load: Load) -> Path:
    own = Path(load.scratch) / "replica"
    linked(Path(load.folder), own)
    return own


def _artefact(load: Load) -> Path | None:
    return Path(load.artefact) if load.artefact and Path(load.artefact).exists() else None


def take(replica: Replica | Holding, load: Load, held: Held) -> bool:
    """Have a replica of ours hold the node's newer state, where it stands on the same base; False: load anew.

    Raises:
        ExactnessError: What lies there is another state than the note says. The replica has to be loaded anew.
    """
    if replica.base.generation != held.generation:
        return False
    fetched = Path(load.scratch) / "fetched.bin"
    try:
        _link(Path(load.folder) / _STATE, fetched)
    except FileNotFoundError:
        return False
    replica.adopt(fetched, held.generation, "whole", held.digest)
    return True


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


def _require(replica: Replica | Holding, held: Held) -> None:
    """A merge that training has made since changes the digest, as the plan foretold."""
    version, generation = replica.state.version, replica.base.generation
    if replica.digest() not in (held.digest, published_digest(held.plan, version, generation)):
        raise ExactnessError(f"what lies on the disk is not version {held.version}", place=str(replica.base.generation))
