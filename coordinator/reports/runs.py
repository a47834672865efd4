# SPDX-License-Identifier: Apache-2.0
"""Runs as they lie on the disk, for whoever looks at them: read beside a coordinator that goes on writing, and never
changed.

What is told of a run is put together from its ledger (what is certain), its view (what was happening when it was last
written) and its summary (what it came to). Any of them may be missing: a run can be looked at right after its start,
and after any kill."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from coordinator.job import EvaluationSection, Job
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import RoundRow
from coordinator.store.places import read_ledger
from coordinator.store.view import NodeView, RunView
from coordinator.store.viewfile import Seen, read_view
from fedcore.errors import ConfigError, FedkrsoError, RunError
from fedcore.fields.prepared import prepared
from fedcore.system.logs import printable

__all__ = ["RunRecord", "State", "choose_run", "find_run", "folder_bytes", "read_run", "scan"]

K = TypeVar("K")
State = Literal["running", "finished", "stopped"]
# A coordinator whose process cannot be seen from here counts as running while its view is no older.
_FRESH_SECONDS = 30.0


@dataclass(frozen=True)
class RunRecord:
    """A run as it lies on the disk."""

    name: str
    """Of its folder."""
    root: Path
    evaluation: EvaluationSection | None
    """Of its job."""
    state: State
    why: str
    """What a person should know of the state: the error it ended with, how it can go on; empty where there is nothing
    to say."""
    view: RunView
    """Its rounds are the ledger's. Nodes are as they were last seen."""
    seen: Seen | None
    started_at: float
    """Unix seconds."""
    refused: dict[str, int] = field(default_factory=dict)
    """Refused updates and messages by the node they came from."""

    @cached_property
    def job(self) -> Job:
        """Its job, read when it is asked for: all types of methods are looked into for it.

        Raises:
            RunError: It is damaged, or from another version.
        """
        return _of_job(self.files.job, Job)

    @property
    def files(self) -> RunFolder:
        """Paths of everything in the run's folder."""
        return RunFolder(self.root)

    @property
    def rows(self) -> list[RoundRow]:
        """The rounds that are published, first to last."""
        return self.view.rows

    @property
    def measured(self) -> list[RoundRow]:
        """Rounds whose accuracy is known."""
        return [row for row in self.rows if row.accuracy is not None]

    @property
    def nodes(self) -> list[str]:
        """Everybody who was seen or took part."""
        return sorted({*self.view.nodes, *(node for row in self.rows for node in row.participants)})

    def age_seconds(self, now: float) -> float | None:
        """How old the view is; None without one."""
        return None if self.seen is None else self.seen.age_seconds(now)


def choose_run(runs: Path, name: str | None, now: float | None = None) -> RunRecord:
    """The run with a name (or a path); without one the only run there is, or the one that was started last of those
    that run.

    Raises:
        ConfigError: No name, and several runs could be meant.
        RunError: There is no such run, or it cannot be read.
    """
    if name is not None:
        return read_run(find_run(runs, name), now)
    records, _ = scan(runs, now)
    if not records:
        raise RunError("there is no run", place=str(runs), remedy="--runs FOLDER names the folder of runs")
    running = [record for record in records if record.state == "running"]
    if len(records) > 1 and not running:
        raise ConfigError(
            f"which run? none is running; there are {_some(record.name for record in records)}", place=str(runs)
        )
    return max(running or records, key=lambda record: record.started_at)


def find_run(runs: Path, name: str) -> Path:
    """The folder of a run, by its name in the folder of runs or by its path.

    Raises:
        RunError: There is none; the nearest name is told.
    """
    if (os.sep in name or name in (".", "..")) and _is_run(Path(name)):
        return Path(name).resolve()
    root = runs / name
    if os.sep not in name and _is_run(root):
        return root
    if not runs.is_dir():
        raise RunError("there is no such folder", place=str(runs), remedy="--runs FOLDER names the folder of runs")
    known = sorted(path.name for path in _folders(runs) if _is_run(path))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RunError(f"no run {printable(name)!r}", place=str(runs), remedy=f"{hint}runs: {_some(known)}")


def read_run(root: Path, now: float | None = None) -> RunRecord:
    """A run by its folder.

    Args:
        root: The folder.
        now: Unix seconds; by default the present.

    Raises:
        RunError: What lies there is damaged, or belongs to another user.
    """
    now = time.time() if now is None else now
    files = RunFolder(root)
    job = _of_job(files.job, _Brief)
    seen = read_view(files.view)
    rows: list[RoundRow] = []
    started_at, digest, refused = files.job.stat().st_mtime, "", dict[str, int]()
    if files.has_ledger():
        with read_ledger(files) as ledger, _readable(files.ledger):
            rows, refused = ledger.rounds(), ledger.counts("refused")
            started_at = ledger.fact("started_at", float) or started_at
            digest = next(
                (obj.digest for obj in reversed(ledger.published_states()) if rows and obj.version == rows[-1].round),
                "",
            )
    view = seen.view if seen is not None else _view_without(_of_job(files.job, Job), rows, files.summary)
    view.rows, view.digest = rows, digest or view.digest
    done = len(rows) >= job.round.rounds and files.summary.exists()
    state, why = _state(root, seen, started=files.has_ledger(), done=done, now=now)
    return RunRecord(root.resolve().name, root, job.evaluation, state, why, view, seen, started_at, refused)


def scan(runs: Path, now: float | None = None) -> tuple[list[RunRecord], list[tuple[str, str]]]:
    """All runs in a folder, the last started first; and what is there but is no run or a damaged one, with the reason.

    Raises:
        RunError: There is no such folder.
    """
    if not runs.is_dir():
        raise RunError("there is no such folder", place=str(runs), remedy="--runs FOLDER names the folder of runs")
    if _is_run(runs):
        raise RunError("this is a run, not a folder of runs", place=str(runs), remedy=f"--runs {runs.parent}")
    records, skipped = [], []
    for path in _folders(runs):
        if not _is_run(path):
            skipped.append((printable(path.name), "no run: neither job.json nor ledger.sqlite"))
            continue
        try:
            record = read_run(path, now)
            # One of another version is told of here, not where somebody opens it.
            _ = record.job
            records.append(record)
        except FedkrsoError as error:
            skipped.append((printable(path.name), error.one_line()))
    return sorted(records, key=lambda record: (-record.started_at, record.name)), skipped


def folder_bytes(root: Path) -> int:
    """What a run's files come to; one that goes away meanwhile counts nothing."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total


def _folders(runs: Path) -> list[Path]:
    return sorted(path for path in runs.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_run(root: Path) -> bool:
    files = RunFolder(root)
    return files.job.exists() or files.has_ledger()


class _BriefRound(msgspec.Struct, frozen=True):
    rounds: int = 0


class _Brief(msgspec.Struct, frozen=True):
    """What of a job a look at its run takes."""

    round: _BriefRound = _BriefRound()
    evaluation: EvaluationSection | None = None


def _of_job(path: Path, kind: type[K]) -> K:
    try:
        return msgspec.json.decode(path.read_bytes(), type=prepared(kind))
    except FileNotFoundError:
        raise RunError("a ledger without its job", place=str(path), remedy="put job.json back from a copy") from None
    except PermissionError:
        raise RunError(
            "only its owner can read it", place=str(path), remedy="look at it as the coordinator's user"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, FedkrsoError) as error:
        raise RunError(f"damaged, or from another version: {printable(str(error))}", place=str(path)) from None
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", place=str(path)) from None


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"the ledger is damaged, or from another version: {printable(str(error))}", place=str(path)
        ) from None


def _state(root: Path, seen: Seen | None, *, started: bool, done: bool, now: float) -> tuple[State, str]:
    resume = f"fedkrso coordinator resume {root.resolve().name} --runs {root.parent}"
    if seen is None:
        if done:
            return "finished", ""
        how = "nobody wrote what it is doing; if it does not run" if started else "never started; to start it"
        return "stopped", f"{how}: {resume}"
    running = seen.running
    if running:
        age = seen.age_seconds(now)
        return (
            "running",
            f"its coordinator (process {seen.writer.pid}) has written nothing for {age:.0f} s"
            if age > _FRESH_SECONDS
            else "",
        )
    if done or seen.ended == "finished":
        return "finished", ""
    if running is None:
        host, age = printable(seen.writer.host), seen.age_seconds(now)
        if age <= _FRESH_SECONDS:
            return "running", f"on {host}, as its view of {age:.0f} s ago says"
        return "stopped", f"nothing was written for {age:.0f} s; whether it still runs can be seen on {host} only"
    if seen.ended == "failed":
        return "stopped", seen.error
    how = (
        "was interrupted"
        if seen.ended
        else f"(process {seen.writer.pid}) ended without a last word: killed, or the machine went down"
    )
    return "stopped", f"its coordinator {how}; to go on: {resume}"


def _view_without(job: Job, rows: list[RoundRow], summary: Path) -> RunView:
    """What can be told of a run from before there were views."""
    view = RunView(job.run, job.method.name, job.round.rounds, phase="", round=len(rows), phases=job.phases)
    view.nodes = {name: NodeView(name) for name in sorted({name for row in rows for name in row.participants})}
    try:
        found: dict[str, Any] = json.loads(summary.read_bytes())
        view.security, view.digest = str(found["security"]), str(found["final"]["digest"])
        for name, node in found["nodes"].items():
            known = view.nodes.setdefault(name, NodeView(name))
            known.digest, known.version = str(node["digest"]), int(node["model_version"])
            known.budget_bytes, known.peak_bytes = int(node["budget_bytes"]), int(node["peak_bytes"])
            known.security, known.trouble = str(node["security"]), str(node["trouble"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Nothing that a ledger has not.
        pass
    return view


def _some(names: Any) -> str:
    shown = [printable(name) for name in names]
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "") if shown else "none"
