# SPDX-License-Identifier: Apache-2.0
"""More rounds for a run than its job said: it goes on from its last state."""

from __future__ import annotations

import msgspec

from coordinator.job import Job
from coordinator.store.folder import RunFolder, write_job
from coordinator.store.ledger import Ledger
from coordinator.store.standing import standing_of
from fedcore.errors import RunError

__all__ = ["with_rounds"]


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
