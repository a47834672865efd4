# SPDX-License-Identifier: Apache-2.0
"""Whether a run may be led now, and more rounds for it than its job said."""

from __future__ import annotations

import msgspec

from coordinator.job import Job
from coordinator.store.folder import RunFolder, write_job
from coordinator.store.ledger import Ledger
from coordinator.store.standing import standing_of
from coordinator.store.viewfile import read_view, running_coordinator
from fedcore.errors import RunError

__all__ = ["require_open", "with_rounds"]


def require_open(run: str, folder: RunFolder, *, finished_too: bool) -> None:
    """Look whether a coordinator may lead a run.

    Args:
        run: Its name.
        folder: Of the run.
        finished_too: Whether it may also be finished.

    Raises:
        RunError: It is finished, or another coordinator leads it.
    """
    seen = None if finished_too else read_view(folder.view)
    if seen is not None and seen.ended == "finished":
        raise RunError(
            f"run {run!r} is finished",
            place=str(folder.root),
            remedy=f"its report is {folder.report}; nothing was changed; --rounds N has it go on to N rounds",
        )
    other = running_coordinator(folder.view)
    if other is not None:
        raise RunError(
            f"its coordinator runs already, as process {other}",
            place=str(folder.root),
            remedy="stop that one first",
        )


def with_rounds(job: Job, rounds: int, folder: RunFolder, ledger: Ledger) -> Job:
    """The job with so many rounds in all, kept in the run's folder: what is killed then is resumed to the same end.

    A run that had ended early, because nothing better came, does not look for that again.

    Args:
        job: As it was.
        rounds: More than there are.
        folder: Of the run.
        ledger: Of the run.

    Raises:
        RunError: There are as many already.
    """
    rows = ledger.rounds()
    if rounds <= len(rows):
        raise RunError(f"it has {len(rows)} rounds already", place=str(folder.root), remedy="name more with --rounds")
    standing = standing_of(rows, job.evaluation)
    section = job.evaluation
    if section is not None and standing is not None and standing.stop_at is not None:
        section = msgspec.structs.replace(section, stop_after=0)
    job = msgspec.structs.replace(job, round=msgspec.structs.replace(job.round, rounds=rounds), evaluation=section)
    write_job(folder, job)
    return job
