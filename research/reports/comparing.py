# SPDX-License-Identifier: Apache-2.0
"""From runs to the numbers of a report: a group for each task and split, in it the methods side by side. Only
predictions are read here."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedcore.errors import RunError
from research.data.tasks import Task, task_by_name
from research.reports.resampling import Difference, difference, metric_values, row_weights
from research.reports.table import Run
from research.runs.predictions import PARTS, Part, Predictions, load_predictions
from research.runs.rows import Row

__all__ = [
    "Group",
    "Spread",
    "best",
    "budgets",
    "check_reference",
    "differences",
    "groups",
    "reference_of",
    "spread",
    "targets_of",
    "total_bytes",
]

_BOOTSTRAP_SEED = 0
_SHARES = (0.90, 0.95, 0.98)
_MOST_BUDGETS = 7


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; no deviation of one seed."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Group:
    """The finished runs of a task with a split: by label, and in it by seed.

    Attributes:
        without_dropout: Where every client takes part in every round.
        dropouts: By probability to miss a round, 0 among them.
    """

    task: Task
    split: str
    without_dropout: Mapping[str, Mapping[int, Run]]
    dropouts: Mapping[float, Mapping[str, Mapping[int, Run]]]

    @property
    def runs(self) -> list[Run]:
        """All that took part."""
        return [run for by_label in self.dropouts.values() for by_seed in by_label.values() for run in by_seed.values()]


def groups(runs: Sequence[Run]) -> list[Group]:
    """Finished runs by task and split.

    Raises:
        RunError: No run is finished.
    """
    whole = [run for run in runs if run.whole]
    if not whole:
        raise RunError(f"none of {len(runs)} runs is finished", remedy="the command that began them goes on with them")

    def key(run: Run) -> tuple[str, str]:
        return run.setup.task, run.setup.split

    found = []
    for (task, split), members in itertools.groupby(sorted(whole, key=key), key):
        by_dropout: dict[float, dict[str, dict[int, Run]]] = {}
        for run in members:
            by_dropout.setdefault(run.setup.dropout, {}).setdefault(run.setup.label, {})[run.setup.seed] = run
        ordered = {dropout: by_dropout[dropout] for dropout in sorted(by_dropout)}
        found.append(Group(task_by_name(task), split, ordered.get(0.0, {}), ordered))
    return found


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and standard deviation of some values; None where there are none."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def best(task: Task, values: Sequence[float]) -> float:
    """By the task's metric."""
    return max(values) if task.higher_is_better else min(values)


def total_bytes(row: Row) -> int:
    """Both ways, all clients, since the run began."""
    return row.uplink_bytes + row.downlink_bytes


def reference_of(group: Group, wanted: str | None) -> str | None:
    """The label that others are compared with: the one asked for, else `fedkrso`, else the first that begins so, else
    the first."""
    labels = sorted(group.without_dropout)
    if wanted in labels:
        return wanted
    return next((label for label in labels if label.startswith("fedkrso")), labels[0] if labels else None)


def check_reference(groups: Sequence[Group], wanted: str) -> None:
    """Check that a label can be compared with: some tasks may have no run of it.

    Raises:
        RunError: None has.
    """
    labels = sorted({label for group in groups for label in group.without_dropout})
    if wanted not in labels:
        raise RunError(f"no finished run of {wanted!r}", place="--reference", remedy=f"one of {', '.join(labels)}")


def differences(group: Group, reference: str, resamples: int) -> dict[str, dict[Part, Difference]]:
    """Of every other label: what the reference is better by in the last round, on each part of the rows; negative where
    it is worse."""
    kind, found = (
        group.task.kind,
        {label: dict[Part, Difference]() for label in group.without_dropout if label != reference},
    )
    sign = 1.0 if group.task.higher_is_better else -1.0
    for part in PARTS:
        said = {label: _said(by_seed, part) for label, by_seed in group.without_dropout.items()}
        _check_rows(group, said, part)
        rows = len(next(iter(said[reference].values())).wanted)
        weights = row_weights(rows, resamples, _BOOTSTRAP_SEED)
        values = {
            label: {seed: sign * metric_values(group.task.metric, kind, one, weights) for seed, one in by_seed.items()}
            for label, by_seed in said.items()
        }
        for label, by_part in found.items():
            pairs = [
                (said[reference][seed], said[label][seed])
                for seed in sorted(said[reference].keys() & said[label].keys())
            ]
            one = difference(
                values[reference], values[label], pairs if "classification" in kind else (), _BOOTSTRAP_SEED
            )
            if one is not None:
                by_part[part] = one
    return found


def _said(by_seed: Mapping[int, Run], part: Part) -> dict[int, Predictions]:
    return {seed: load_predictions(run.files.predictions)[part] for seed, run in by_seed.items()}


def _check_rows(group: Group, said: Mapping[str, Mapping[int, Predictions]], part: Part) -> None:
    """Rows can be compared only where they are the same."""
    wanted = [one.wanted for by_seed in said.values() for one in by_seed.values()]
    if any(not np.array_equal(one, wanted[0]) for one in wanted[1:]):
        raise RunError(
            f"runs on {group.task.name} have different {part} rows",
            remedy="keep runs with other data or sizes in another folder",
        )


def budgets(group: Group) -> list[float]:
    """Bytes of one client, both ways, at which quality is told: 1, 2, 5, 10, ... from the cheapest round to the dearest
    run."""
    runs = [run for by_seed in group.without_dropout.values() for run in by_seed.values()]
    least = min(total_bytes(run.rows[0]) / run.setup.clients for run in runs)
    most = max(total_bytes(run.rows[-1]) / run.setup.clients for run in runs)
    grid = [factor * 10.0**power for power in range(3, 15) for factor in (1, 2, 5)]
    inside = [value for value in grid if least <= value < most] + [min(value for value in grid if value >= most)]
    if len(inside) > _MOST_BUDGETS:
        inside = [inside[round(index * (len(inside) - 1) / (_MOST_BUDGETS - 1))] for index in range(_MOST_BUDGETS)]
    return inside


def targets_of(group: Group, wanted: Sequence[float]) -> list[float]:
    """Values of the metric whose cost is told: those asked for, else shares of the best method's mean in the last
    round."""
    if wanted:
        return list(wanted)
    last: Callable[[Run], float] = lambda run: run.rows[-1].held  # noqa: E731
    top = best(
        group.task, [statistics.fmean(map(last, by_seed.values())) for by_seed in group.without_dropout.values()]
    )
    return [top * share if group.task.higher_is_better else top / share for share in _SHARES]
