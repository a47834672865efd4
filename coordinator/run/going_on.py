# SPDX-License-Identifier: Apache-2.0
"""Whether a run may be led now, what its round machine has to know of its earlier life, and more rounds for it than its
job said, or fewer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from coordinator.job import Job
from coordinator.rounds.machine import RoundMachine
from coordinator.store.buffer import counting
from coordinator.store.folder import RunFolder, write_job
from coordinator.store.ledger import Ledger
from coordinator.store.standing import standing_of
from coordinator.store.viewfile import read_view, running_coordinator
from fedcore.errors import RunError
from fedcore.methods.beside.heads import longer_head, shorter_head
from fedcore.round.plan import Plan
from fedcore.system.clocks import Clocks
from fedcore.system.locks import owned

__all__ = ["CUT_SHORT", "ended_by_head", "led_alone", "remember", "require_open", "with_rounds"]

CUT_SHORT: Final = "cut_short"
"""The ledger's fact of a run that ends before its time, with a head that is made for it."""


@contextlib.contextmanager
def led_alone(run: str, folder: RunFolder, *, finished_too: bool) -> Iterator[None]:
    """Lead a run, and be the only one on this machine that does: two that start at the same moment both find nobody,
    and the kernel's lock on the folder says which of them it is.

    Args:
        run: Its name.
        folder: Of the run.
        finished_too: Whether it may also be finished.

    Raises:
        RunError: It is finished, or another coordinator leads it.
    """
    require_open(run, folder, finished_too=finished_too)
    with owned(folder.root, f"coordinator of run {run}", remedy="stop that one first"):
        yield


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
    head = longer_head(job.head, len(rows), job.round.rounds, rounds)
    longer = msgspec.structs.replace(job.round, rounds=rounds)
    job = msgspec.structs.replace(job, round=longer, head=head, evaluation=section)
    write_job(folder, job)
    ledger.put_fact(CUT_SHORT, False)
    return job


def ended_by_head(job: Job, next_round: int) -> Callable[[Job], Job] | None:
    """What a run that is to end early does to its job, where heads from sums end it: the round that opens next is one,
    the last, and nobody looks any more whether something better comes. None where it just ends: it has no such heads,
    or its newest round is one already.

    Args:
        job: With its head settled.
        next_round: The first that is not open yet.
    """
    if not job.head.comes_again or job.head.is_head(next_round - 1):
        return None
    rounds = min(next_round, job.round.rounds)
    head = shorter_head(job.head, rounds)

    def ended(one: Job) -> Job:
        section = one.evaluation and msgspec.structs.replace(one.evaluation, stop_after=0)
        shorter = msgspec.structs.replace(one.round, rounds=rounds)
        return msgspec.structs.replace(one, round=shorter, head=head, evaluation=section)

    return ended


def remember(
    machine: RoundMachine, ledger: Ledger, plan: Plan | None, job: Job, revoked: Callable[[str], bool], clocks: Clocks
) -> None:
    """Have a round machine know what an earlier life had: the round that was open, its updates, and those for
    the round that opens next.

    Args:
        machine: As it is at a run's start.
        ledger: Of the run.
        plan: Of the round that was open; None where none was.
        job: The run's.
        revoked: Whether what a node has sent counts no more.
        clocks: For the deadline.
    """
    if plan is not None:
        rows, invited = counting(ledger, plan.round, plan.max_staleness), set(plan.cohort)
        # One that was trained for an earlier round counts whoever is invited to this one.
        sent = {row.header.node for row in rows if row.into or row.header.node in invited}
        accepted = {node for node in sent if not revoked(node)}
        left = min(plan.deadline_at - clocks.wall(), job.round.deadline_seconds)
        machine.resume_open(plan.cohort, accepted, clocks.steady() + left)
    ahead = machine.next_round
    rows = counting(ledger, ahead, job.staleness.allowed(ahead))
    machine.held = {row.header.node for row in rows if row.into and not revoked(row.header.node)}
