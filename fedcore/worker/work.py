# SPDX-License-Identifier: Apache-2.0
"""What a coordinator asks of a worker where a round's outcome is no sum of its updates: to make one update of them all,
which the round is then closed with alone (`fedcore.round.training.Training.work`)."""

from __future__ import annotations

import msgspec

from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan

__all__ = ["WORKS", "Part", "Work", "Worked"]

WORKS = "work"
"""Stands for run and node in an update that a worker of the coordinator made."""


class Part(msgspec.Struct, frozen=True):
    """A participant's update, as it counts."""

    path: str
    header: UpdateHeader
    examples: int
    """How many of its examples count: fewer than it has, where the job limits what one participant weighs."""


class Work(msgspec.Struct, frozen=True, kw_only=True, tag="work"):
    """Make a round's one update, as its plan's training says how."""

    plan: Plan
    model_folder: str
    state: str
    """File of the published state that the round starts from, whole."""
    digest: str
    """Of the model then."""
    parts: tuple[Part, ...]
    """By node."""
    key: str
    """Of all that decides the result; what a worker that was killed left of another is not gone on from."""
    folder: str
    """For what is needed in between."""
    path: str
    """Of the update."""
    threads: int = 1


class Worked(msgspec.Struct, frozen=True, tag="worked"):
    """The update is written and flushed."""

    loss: float
    """The mean, in training."""
    seconds: float
    peak_bytes: int | None = None
    """Highest resident size of the worker."""

    @property
    def words(self) -> str:
        """For a person.

        Example:
            >>> Worked(0.25, 12.3, 700_000_000).words
            'worked for 12 s, in 668 MiB at most; training loss 0.2500'
        """
        peak = "" if self.peak_bytes is None else f", in {self.peak_bytes / 2**20:,.0f} MiB at most"
        return f"worked for {self.seconds:.0f} s{peak}; training loss {self.loss:.4f}"
