# SPDX-License-Identifier: Apache-2.0
"""A run's folder: where everything lies, and the job that it was started with."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from coordinator.job import Job
from fedcore.errors import RunError, StorageError
from fedcore.fields.prepared import prepared
from fedcore.round.plan import ObjectKind
from fedcore.system.durable import is_full
from fedcore.system.software import software

__all__ = ["FOLDER_VERSION", "RunFolder", "stored_job", "write_job", "written"]

FOLDER_VERSION: Final = 3
"""Of the files in a run's folder and their names; 1 where nobody wrote it down."""
_SCRATCH: Final = "scratch-"
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    root: Path

    @property
    def ledger(self) -> Path:
        """SQLite, where the ledger is in no database."""
        return self.root / "ledger.sqlite"

    @property
    def database(self) -> Path:
        """Names the database that the ledger is in; whatever else lies there, the ledger is in the database then."""
        return self.root / "ledger.json"

    def has_ledger(self) -> bool:
        """Whether the run has begun, as far as the folder says."""
        return self.ledger.exists() or self.database.exists()

    @property
    def job(self) -> Path:
        """The job as it was started, for `resume`; readable by its owner only, since it may hold a password."""
        return self.root / "job.json"

    @property
    def format(self) -> Path:
        """Which version of this program's folders it is."""
        return self.root / "format.json"

    @property
    def base(self) -> Path:
        """Master copies of later generations."""
        return self.root / "base"

    @property
    def exported_base(self) -> Path:
        """The base of an earlier round that was exported; made anew where it is not there."""
        return self.root / "base-exported"

    @property
    def artefact(self) -> Path:
        """The run's artefact, where its method asks for one."""
        return self.root / "artefact.bin"

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for as long as a command needs it, where there is room for a model."""
        for left in self.abandoned():
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-", dir=self.root) as folder:
            yield Path(folder)

    def abandoned(self) -> list[Path]:
        """What commands that were killed left of theirs."""
        # Here and not at the top: whoever only looks at runs does not load it.
        import psutil

        found = {path: path.name.removeprefix(_SCRATCH).partition("-")[0] for path in self.root.glob(f"{_SCRATCH}*-*")}
        return sorted(path for path, pid in found.items() if pid.isdecimal() and not psutil.pid_exists(int(pid)))

    @property
    def models(self) -> Path:
        """Models that were imported from GGUF files, of all runs in this folder of runs; no run has such a name."""
        return self.root.parent / ".models"

    @property
    def evaluator(self) -> Path:
        """The evaluation process' own folder."""
        return self.root / "evaluator"

    @property
    def summary(self) -> Path:
        """What the run came to, for machines."""
        return self.root / "summary.json"

    @property
    def view(self) -> Path:
        """What the coordinator is doing, for whoever looks from another process."""
        return self.root / "view.json"

    @property
    def report(self) -> Path:
        """What the run came to, for people."""
        return self.root / "report.html"

    @property
    def updates(self) -> Path:
        """Participants' updates, a folder a round."""
        return self.root / "updates"

    def update(self, server_round: int, node: str) -> Path:
        """A participant's update."""
        return self.updates / str(server_round) / f"{node}.bin"

    @property
    def published_states(self) -> Path:
        """Published objects."""
        return self.root / "published"

    def published_state(self, version: int, kind: ObjectKind) -> Path:
        """A published object."""
        return self.published_states / f"{version}-{kind}.bin"

    def state(self, version: int) -> Path:
        """The exact state of a version."""
        return self.root / "state" / f"{version}.npz"


@contextlib.contextmanager
def written(folder: RunFolder) -> Iterator[None]:
    """Whatever is written within: a disk that is full, or a folder that may not be written, is one line.

    Raises:
        StorageError: There is no room, or no right to write.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            remedy = f"free space there, then: fedkrso coordinator resume {folder.root.name}"
            raise StorageError(f"the disk is full: {error.strerror}", place=str(folder.root), remedy=remedy) from None
        if error.errno not in _FORBIDDEN:
            raise
        place, remedy = error.filename or folder.root, "give this user the right to write there, or another --runs"
        raise StorageError(f"cannot be written: {error.strerror}", place=str(place), remedy=remedy) from None


class _Format(msgspec.Struct, frozen=True):
    run_folder: int
    software: str = ""


def write_job(folder: RunFolder, job: Job) -> None:
    """Keep the job as it was started: beside and renamed, since one that was cut short could not be resumed."""
    folder.format.write_bytes(msgspec.json.encode(_Format(FOLDER_VERSION, software())))
    keep = folder.job.with_name(folder.job.name + ".new")
    keep.touch(mode=0o600)
    keep.write_bytes(msgspec.json.format(msgspec.json.encode(job)))
    keep.replace(folder.job)


def stored_job(root: Path) -> Job:
    """The job that a run was started with.

    Raises:
        RunError: There is no such run, or another version of this program began it.
    """
    path = RunFolder(root).job
    _check_format(RunFolder(root))
    try:
        return msgspec.json.decode(path.read_bytes(), type=prepared(Job))
    except FileNotFoundError:
        known = sorted(other.parent.name for other in root.parent.glob(f"*/{path.name}"))
        raise RunError(
            f"no run {root.name!r}", place=str(root.parent), remedy=f"runs: {', '.join(known) or 'none'}"
        ) from None
    except msgspec.DecodeError as error:
        raise RunError(
            f"this version cannot read the job: {error}",
            place=str(path),
            remedy="go on with the version that began the run",
        ) from None


def _check_format(folder: RunFolder) -> None:
    try:
        found = msgspec.json.decode(folder.format.read_bytes(), type=_Format)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        # Of before there was such a file, or not there at all: the ledger says it.
        return
    if found.run_folder != FOLDER_VERSION:
        wrote = f"fedkrso {found.software}" if found.software else "another version of fedkrso"
        raise RunError(
            f"the run's folder is of format {found.run_folder} ({wrote}), this program reads {FOLDER_VERSION}",
            place=str(folder.root),
            remedy="go on with the version that began the run, or begin a new one",
        )
