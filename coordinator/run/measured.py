# SPDX-License-Identifier: Apache-2.0
"""What nodes measured, put together: the mean over all held-out rows, as exact sums, and every node's part.

One node moves a mean by no more than its share, whatever it claims. Its rows (or tokens) count as at most
`safety.max_share_ratio` times the lower median of what was claimed, as in the mean of updates; and a number that has no
bound of its own, like a loss, counts as at most so many times the nodes' lower median of it, or so many ones. Pure: the
result depends on the set of measurements alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from coordinator.job import SafetySection
from coordinator.store.rows import NodeScore, NodesMeasured
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.round.measurement import ACCURACY, LOSS, UNIT, Measurement, Sum

__all__ = ["pooled"]

_RATIO = 10.0


def pooled(found: Mapping[str, Measurement], safety: SafetySection, task: TaskSection) -> NodesMeasured | None:
    """The measurements of one published state as one; None where there are none.

    Args:
        found: By node, all of the same names.
        safety: The limits.
        task: What the model does.
    """
    if not found:
        return None
    # Losses of honest nodes are further apart than their numbers of examples.
    ratio = _RATIO if safety.max_share_ratio is None else safety.max_share_ratio
    capped: set[str] = set()
    means: dict[str, float] = {}
    for name in next(iter(found.values())).sums:
        sums = {node: one.sums[name] for node, one in found.items()}
        counted = _limited(sums, ratio) if ratio else sums
        capped |= {node for node in sums if counted[node] != sums[node]}
        means[name] = _mean(list(counted.values()))
    derived = task_of(task).derived
    return NodesMeasured(
        sum(one.examples for one in found.values()),
        means.pop(ACCURACY),
        loss := means.pop(LOSS),
        {**means, **derived(loss)},
        {node: _score(found[node], derived(found[node].sums[LOSS].mean)) for node in sorted(found)},
        tuple(sorted(capped)),
    )


def _score(one: Measurement, derived: Mapping[str, float]) -> NodeScore:
    means = {name: value.mean for name, value in one.sums.items()}
    return NodeScore(one.examples, means.pop(ACCURACY), means.pop(LOSS), {**means, **derived})


def _mean(sums: list[Sum]) -> float:
    """Of integers, divided once: the same in any order, and correct to the last bit."""
    return sum(one.total for one in sums) / (sum(one.count for one in sums) * UNIT)


def _limited(sums: Mapping[str, Sum], ratio: float) -> dict[str, Sum]:
    most_count = int(ratio * statistics.median_low(one.count for one in sums.values()))
    least = statistics.median_low(abs(one.total) // one.count for one in sums.values())
    most = int(ratio * max(least, UNIT))
    out = {}
    for node, one in sums.items():
        count = min(one.count, most_count)
        total = one.total if count == one.count else one.total * count // one.count
        out[node] = Sum(max(-most * count, min(total, most * count)), count)
    return out
