# SPDX-License-Identifier: Apache-2.0
"""How long a round waits: pure functions of what its nodes took, and of what is on its way."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from coordinator.rounds.section import RoundSection

__all__ = ["deadline_seconds", "is_arriving"]

# An update counts as on its way for so long after its last progress.
_PROGRESS_SECONDS = 15.0


def deadline_seconds(
    settings: RoundSection, cohort: Sequence[str], took: Mapping[str, float], missed: Collection[str]
) -> float:
    """What a cohort gets, from its slowest member's last round where all have been timed; but for those that have let a
    deadline pass and sent nothing ever, for which nobody else waits so long.

    Args:
        settings: The job's `[round]`.
        cohort: Who is invited.
        took: Seconds of each node's last round.
        missed: Nodes that let the last deadline pass.
    """
    timed = [node for node in cohort if node in took]
    untimed = [node for node in cohort if node not in took and node not in missed]
    if not settings.deadline_slack or untimed or not timed:
        return settings.deadline_seconds
    slowest = max(took[node] for node in timed)
    return min(settings.deadline_seconds, max(settings.least_deadline_seconds, settings.deadline_slack * slowest))


def is_arriving(progress: dict[str, float], nodes: Collection[str], excluded: Collection[str], now: float) -> bool:
    """Whether an update is on its way and making progress: a slow link is no reason to lose it.

    Args:
        progress: When each update last made some, the latest last.
        nodes: Whose updates are waited for.
        excluded: Of them, those for which nobody waits.
        now: Seconds of the same clock.
    """
    for node in reversed(progress):
        if now - progress[node] >= _PROGRESS_SECONDS:
            return False
        if node in nodes and node not in excluded:
            return True
    return False
