# SPDX-License-Identifier: Apache-2.0
"""The tables of a report: how good at the end, who is better than whom, and three views of who has to deploy it.

The deployment views are those of EdgeFlowerTune (arXiv 2605.08636): quality under a budget, cost to a target,
robustness."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from research.reports.comparing import Group, Spread, best, budgets, differences, spread, targets_of, total_bytes
from research.reports.layout import Cell, Column, Table
from research.reports.table import Run
from research.runs.predictions import PARTS
from research.runs.rates import Rates
from research.runs.rows import Row

_FINAL_NOTE = (
    "{metric}, mean ± standard deviation over seeds, on held-out rows of the training file and on the development "
    "set. The best round is chosen on the very rows that it is told for, so it flatters. Megabytes are of one client; "
    "seconds are of training all clients, one after the other, in processor time (on an accelerator by the clock). "
    "Memory is the peak of the process while clients train."
)
_DIFFERENCE_NOTE = (
    "What {reference} is better by in the last round (negative: worse), with the 95 % interval of a paired bootstrap: "
    "{resamples} resamples of rows, the same for both methods, and of the seeds that both have. With few seeds the "
    "interval is too narrow, since it knows no others; each seed's own difference stands beside it. The last column "
    "counts held-out rows that only {reference} has right, and those that only the other has, over all seeds."
)
_BUDGET_NOTE = (
    "{metric} on held-out rows of the last model that a client gets for so many megabytes, up and down together; – "
    "where the first round costs more. A run that ended below a budget keeps its last value."
)
_COST_NOTE = (
    "Until {metric} on held-out rows first reaches a target: rounds, megabytes of one client up and down together, "
    "and seconds of training all clients; over the seeds that reach it."
)
_DROPOUT_NOTE = "{metric} on held-out rows in the last round, where each client misses each round with a probability."

__all__ = ["BySeed", "budget_table", "cost_table", "difference_table", "dropout_table", "final_table", "seconds_of"]

BySeed = Mapping[int, Run]


def seconds_of(row: Row) -> float:
    """Time of a round's training: the processor's, which other work does not lengthen; an accelerator's user waits."""
    return row.seconds if row.accelerator_peak_bytes is not None else row.processor_seconds


def _metric(group: Group) -> str:
    """At the beginning of a sentence."""
    name = group.task.metric_name
    return name[:1].upper() + name[1:]


def _form(group: Group) -> str:
    return ".4f" if group.task.higher_is_better else ".3f"


def _each(runs: BySeed, value: str, group: Group, *, at_best: bool) -> Spread | None:
    """Over seeds, of the last or the best round; only where every round has the value."""
    found = []
    for run in runs.values():
        values = [getattr(row, value) for row in run.rows]
        if None in values:
            return None
        found.append(best(group.task, values) if at_best else values[-1])
    return spread(found)


def final_table(group: Group, rates: Rates) -> Table:
    """The last and the best round of each method, and what it cost."""
    form = _form(group)
    table = Table(
        "final",
        "At the end",
        _FINAL_NOTE.format(metric=_metric(group)),
        [
            Column("method"),
            Column("learning rate"),
            Column("seeds", "d"),
            *(
                Column(f"{part}, {which}", form, spread=True)
                for part in PARTS
                for which in ("last round", "best round")
            ),
            *(Column(f"{part}, {group.task.beside.upper()}", form, spread=True) for part in PARTS if group.task.beside),
            Column("up, MB a round", ".3g"),
            Column("down, MB a round", ".3g"),
            Column("peak memory, MB", ".0f"),
            Column("seconds a round", ".1f"),
        ],
    )
    for label, runs in _ordered(group):
        one = [_each(runs, part, group, at_best=at_best) for part in PARTS for at_best in (False, True)]
        last = [run.rows[-1] for run in runs.values()]
        beside = [
            spread([row.metrics[f"{part}_{group.task.beside}"] for row in last]) for part in PARTS if group.task.beside
        ]
        clients = [run.setup.clients * run.setup.rounds for run in runs.values()]
        rows = [row for run in runs.values() for row in run.rows]
        peaks = [row.accelerator_peak_bytes or row.peak_bytes for row in rows]
        table.rows.append(
            [
                label,
                _rate(next(iter(runs.values())), rates),
                len(runs),
                *one,
                *beside,
                statistics.fmean(row.uplink_bytes / count for row, count in zip(last, clients, strict=True)) / 1e6,
                statistics.fmean(row.downlink_bytes / count for row, count in zip(last, clients, strict=True)) / 1e6,
                max((peak for peak in peaks if peak is not None), default=0) / 1e6 or None,
                sum(map(seconds_of, rows)) / sum(run.rows[-1].round for run in runs.values()),
            ]
        )
    return table


def _rate(run: Run, rates: Rates) -> str:
    """A run's learning rate and where it comes from."""
    setup = run.setup
    rate = setup.method.learning_rate
    if "learning_rate=" in setup.label:
        return f"{rate:g} (given)"
    name = setup.label.partition("[")[0]
    tuned = rates.find(setup.task, setup.split, setup.label) or rates.find(setup.task, setup.split, name)
    if tuned is None or tuned.learning_rate != rate:
        return f"{rate:g} (default)"
    return f"{rate:g} (tuned{', at the edge of the grid' if tuned.at_edge else ''})"


def _ordered(group: Group) -> list[tuple[str, BySeed]]:
    """Methods, the best first."""
    sign = -1.0 if group.task.higher_is_better else 1.0
    return sorted(
        group.without_dropout.items(),
        key=lambda one: sign * statistics.fmean(run.rows[-1].held for run in one[1].values()),
    )


def difference_table(group: Group, reference: str, resamples: int) -> Table:
    """The reference minus each other method, row by row and seed by seed."""
    form = f"+{_form(group)}"
    table = Table(
        "differences",
        f"{reference} against the others",
        _DIFFERENCE_NOTE.format(reference=reference, resamples=resamples),
        [
            Column("against"),
            Column("seeds", "d"),
            *(Column(f"{part}, {what}", form) for part in PARTS for what in ("difference", "from", "to", "by seed")),
            Column("only one right"),
        ],
    )
    for label, by_part in differences(group, reference, resamples).items():
        if not by_part:
            continue
        cells: list[Cell] = []
        for part in PARTS:
            one = by_part[part]
            cells += [one.mean, one.low, one.high, " ".join(format(gap, form) for gap in one.by_seed.values())]
        held = by_part["held"]
        only = None if held.only_first is None else f"{held.only_first} : {held.only_second}"
        table.rows.append([label, len(held.by_seed), *cells, only])
    return table


def budget_table(group: Group) -> Table:
    """What a method has reached when a client has sent and fetched so much."""
    values = budgets(group)
    table = Table(
        "budget",
        "Quality under a budget",
        _BUDGET_NOTE.format(metric=_metric(group)),
        [Column("method"), *(Column(f"{value / 1e6:g} MB", _form(group), spread=True) for value in values)],
    )
    for label, runs in _ordered(group):
        cells: list[Cell] = [label]
        for value in values:
            within = [
                [row.held for row in run.rows if total_bytes(row) <= value * run.setup.clients] for run in runs.values()
            ]
            cells.append(spread([found[-1] for found in within]) if all(within) else None)
        table.rows.append(cells)
    return table


def cost_table(group: Group, wanted: Sequence[float]) -> Table:
    """What it takes to be so good."""
    targets = targets_of(group, wanted)
    table = Table(
        "cost",
        "Cost to a target",
        _COST_NOTE.format(metric=group.task.metric_name),
        [
            Column("method"),
            Column("target", _form(group)),
            Column("seeds that reach it"),
            Column("rounds", ".1f", spread=True),
            Column("MB a client", ".3g", spread=True),
            Column("seconds", ".0f", spread=True),
        ],
    )
    for target in targets:
        for label, runs in _ordered(group):
            costs = [
                cost
                for run in runs.values()
                if (cost := _cost(run, target, higher_is_better=group.task.higher_is_better))
            ]
            columns = [spread(values) for values in zip(*costs, strict=True)] if costs else [None] * 3
            table.rows.append([label, target, f"{len(costs)} of {len(runs)}", *columns])
    return table


def _cost(run: Run, target: float, *, higher_is_better: bool) -> tuple[float, float, float] | None:
    """Rounds, megabytes and seconds until a target; None where it is not reached."""
    seconds = 0.0
    for row in run.rows:
        seconds += seconds_of(row)
        if row.held >= target if higher_is_better else row.held <= target:
            return float(row.round), total_bytes(row) / run.setup.clients / 1e6, seconds
    return None


def dropout_table(group: Group) -> Table | None:
    """How a method bears missing clients; None where nobody ever misses a round."""
    if not any(group.dropouts):
        return None
    table = Table(
        "dropout",
        "Robustness to missing clients",
        _DROPOUT_NOTE.format(metric=_metric(group)),
        [
            Column("method"),
            *(Column(f"missing {dropout:.0%}", _form(group), spread=True) for dropout in group.dropouts),
        ],
    )
    labels = dict.fromkeys(label for by_label in group.dropouts.values() for label in by_label)
    for label in labels:
        found = [by_label.get(label, {}) for by_label in group.dropouts.values()]
        table.rows.append([label, *(_each(runs, "held", group, at_best=False) if runs else None for runs in found)])
    return table
