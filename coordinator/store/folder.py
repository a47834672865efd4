# SPDX-License-Identifier: Apache-2.0
"""A run's folder: where everything lies, and the exact state as a file."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from coordinator.job import Job
from fedcore.errors import RunError
from fedcore.fields.prepared import prepared
from fedcore.model.state import ExactState
from fedcore.round.plan import ObjectKind
from fedcore.system.durable import flush_folder

__all__ = ["RunFolder", "load_state", "save_state", "stored_job", "write_job"]

# What NumPy and zipfile raise on a file that is not what it was; a damaged shape asks for more memory than there is.
_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    root: Path

    @property
    def ledger(self) -> Path:
        """SQLite."""
        return self.root / "ledger.sqlite"

    @property
    def job(self) -> Path:
        """The job as it was started, for `resume`; readable by its owner only, since it may hold a password."""
        return self.root / "job.json"

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


def write_job(folder: RunFolder, job: Job) -> None:
    """Keep the job as it was started: beside and renamed, since one that was cut short could not be resumed."""
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


def save_state(path: Path, state: ExactState) -> None:
    """Write the exact state beside `path`, flush it and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    arrays = {f"sum/{name}": array for name, array in state.sums.items()}
    arrays |= {f"exponent/{name}": array for name, array in state.exponents.items()}
    arrays |= {f"velocity/{name}": array for name, array in state.velocity.items()}
    head = np.array([state.version, state.rank], np.uint64)
    arrays |= {
        "seeds": np.array(state.seeds, np.uint64),
        "rows_from": np.array(state.rows_from),
        "bits": np.array(state.bits),
    }
    with part.open("wb") as file:
        np.savez(file, head=head, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    flush_folder(path.parent)


def load_state(path: Path) -> ExactState:
    """Read what `save_state` wrote.

    Raises:
        RunError: Missing or damaged.
    """
    try:
        # Opened here: NumPy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            version, rank = (int(x) for x in stored["head"])
            sums, exponents, velocity = (
                {key[len(kind) :]: stored[key] for key in stored.files if key.startswith(kind)}
                for kind in ("sum/", "exponent/", "velocity/")
            )
            # States of before there were other rows than signs, and other widths than 16 bits, do not say it.
            rows_from = str(stored["rows_from"]) if "rows_from" in stored.files else "signs"
            bits = int(stored["bits"]) if "bits" in stored.files else 16
            if not 8 <= bits <= 16:
                raise ValueError(f"{bits} bits a number")
            return ExactState(
                version, tuple(int(s) for s in stored["seeds"]), rank, sums, exponents, velocity, rows_from, bits
            )
    except _DAMAGED as error:
        raise RunError(f"the exact state cannot be read: {error}", place=str(path)) from None
