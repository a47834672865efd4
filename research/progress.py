# SPDX-License-Identifier: Apache-2.0
"""How runs go on, in the terminal: bars with the time left where there is a terminal, a line for each run where there
is none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from research.runner import Failure, Job

__all__ = ["Shown"]


class Shown:
    """Shows runs; use it as a context manager. Time left is by the rounds that were done since it began.

    Args:
        jobs: All of them, also those that are finished.
        console: Where to write.
    """

    def __init__(self, jobs: Sequence[Job], console: Console | None = None) -> None:
        self._console = console or Console()
        self._rounds = {
            id(job): (job.setup.rounds if job.files.finished else job.files.count_rounds(job.setup)) for job in jobs
        }
        self._total = sum(job.setup.rounds for job in jobs)
        self._at_first, self._started_at = sum(self._rounds.values()), time.monotonic()
        self._ended, self._count = sum(job.files.finished for job in jobs), len(jobs)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bars = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._all = self._bars.add_task("rounds of all runs", total=self._total, completed=self._at_first, note="")
        self._bar_of: dict[int, TaskID] = {}
        if self._ended:
            self._console.print(f"{self._ended} of {self._count} runs are finished already", highlight=False)

    def __enter__(self) -> Shown:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, job: Job) -> None:
        """A bar of its own."""
        rounds = self._rounds[id(job)]
        self._bar_of[id(job)] = self._bars.add_task(job.setup.name, total=job.setup.rounds, completed=rounds, note="")

    def round_done(self, job: Job, rounds: int) -> None:
        """Show that a job has done so many rounds."""
        self._rounds[id(job)] = rounds
        self._bars.update(self._bar_of[id(job)], completed=rounds)
        self._bars.update(self._all, completed=sum(self._rounds.values()), note=self.time_left())

    def ended(self, job: Job, failure: Failure | None) -> None:
        """A line for it in place of its bar."""
        self._bars.remove_task(self._bar_of.pop(id(job)))
        self._ended += 1
        if failure is None:
            rows = job.files.rows()
            seconds = sum(row.seconds for row in rows)
            text = f"{rows[-1].held:.3f} on held-out rows after {rows[-1].round} rounds, {seconds:.0f} s of training"
        else:
            text = f"FAILED: {failure.reason}"
            # What it would have been is no work any more.
            self._total -= job.setup.rounds - self._rounds[id(job)]
            self._bars.update(self._all, total=self._total)
        left = self.time_left()
        tail = f", {left}" if left and not self._console.is_terminal else ""
        line = f"{self._ended}/{self._count} {job.setup.name}: {text}{tail}"
        self._bars.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def time_left(self) -> str:
        """For people; nothing before the first round."""
        done = sum(self._rounds.values())
        if done <= self._at_first or done >= self._total:
            return ""
        seconds = (time.monotonic() - self._started_at) / (done - self._at_first) * (self._total - done)
        return f"{timedelta(seconds=round(seconds))} left"
