# SPDX-License-Identifier: Apache-2.0
"""What the cells say, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.comparison.cells import HEAD_AT_END, Cell, Cells
from benchmarks.comparison.methods import FULL

__all__ = ["TARGET", "costs", "curve", "interval", "paired", "results", "searched"]

TARGET = 0.99
"""Of full fine-tuning's best."""
_OWN = ", own rows"
_UNKNOWN = "not known | | "


def results(cells: Cells, methods: Sequence[str], task: str, splits: Sequence[str]) -> Iterator[str]:
    """Held-out / development metric after the last round of each method, mean of seeds, in each split that was run;
    where heads from sums ended runs, before and after that head.

    Args:
        cells: All.
        methods: A row each.
        task: Whose.
        splits: Columns, but for those that nobody ran.
    """
    columns = [
        (split, end)
        for split in splits
        for end in ("", HEAD_AT_END)
        if any(cells.of(task, split, method + end) for method in methods)
    ]
    yield f"| {task} | {' | '.join(_split(split) + end for split, end in columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for method in methods:
        found = [cells.of(task, split, method + end) for split, end in columns]
        if any(found):
            yield f"| {method} | {' | '.join(map(_quality, found))} |"


def _quality(found: Sequence[Cell]) -> str:
    if not found:
        return ""
    own = found[0].method.endswith(_OWN)
    held = "" if own else f"{_mean([cell.held[-1] for cell in found])} / "
    dev = _mean([(cell.own if own else cell.dev)[-1] for cell in found])
    return f"{held}{dev}{f' ({len(found)})' if len(found) > 1 else ''}"


def searched(cells: Cells, methods: Sequence[str], columns: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Each run with what was tried before it: a row for each method, column and seed.

    Args:
        cells: All.
        methods: Whose.
        columns: Task and split.
    """
    yield "| | column, seed | held-out / development | rates tried: metric on tuning rows | MB up / down | seconds |"
    yield "|---|---|---|---|---|---|"
    for task, split in columns:
        for cell in (cell for method in methods for cell in cells.of(task, split, method)):
            tried = ", ".join(_tried(one, cell.learning_rate) for one in cell.tried)
            size = f"{cell.up[-1]:.2f} / {cell.down[-1]:.2f}"
            where = f"{task}, {_split(split)}, {cell.seed}"
            yield f"| {cell.method} | {where} | {_quality([cell])} | {tried} | {size} | {cell.seconds[-1]:.0f} |"


def _tried(one: str, chosen: float) -> str:
    rate, metric = map(float, one.split(":"))
    text = f"{rate:g}: {metric:.3f}"
    return f"**{text}**" if rate == chosen else text


def costs(cells: Cells, methods: Sequence[str], columns: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Megabytes of one client, up and down, and what it takes to 99 % of full fine-tuning's best on held-out rows."""
    yield "| | column | up, MB | down, MB | rounds to 99 % | MB both ways | seconds, all clients |"
    yield "|---|---|---|---|---|---|---|"
    for task, split in columns:
        full = [max(cell.held) for cell in cells.of(task, split, FULL)]
        for method in methods:
            if not (found := cells.of(task, split, method)):
                continue
            up, down = (_mean([getattr(cell, way)[-1] for cell in found], 3) for way in ("up", "down"))
            reached = _reached(found, TARGET * statistics.fmean(full)) if full else _UNKNOWN
            yield f"| {method} | {task}, {_split(split)} | {up} | {down} | {reached} |"


def _reached(found: Sequence[Cell], target: float) -> str:
    """Of the seeds' mean curve, at the first measurement that is there."""
    for index, server_round in enumerate(found[0].rounds):
        if statistics.fmean(cell.held[min(index, len(cell.held) - 1)] for cell in found) >= target:
            size = statistics.fmean(cell.up[index] + cell.down[index] for cell in found)
            return f"{server_round} | {size:.2f} | {statistics.fmean(cell.seconds[index] for cell in found):.0f}"
    return "not reached | | "


def _any(cells: Cells, method: str, task: str, splits: Sequence[str]) -> bool:
    return any(cells.of(task, split, method) for split in splits)


def curve(cells: Cells, task: str, splits: Sequence[str], methods: Sequence[str]) -> Iterator[str]:
    """Held-out / development accuracy by skew."""
    yield f"| {task} | {' | '.join(map(_split, splits))} |"
    yield f"|---|{'---|' * len(splits)}"
    for method in methods:
        if _any(cells, method, task, splits):
            yield f"| {method} | {' | '.join(_quality(cells.of(task, split, method)) for split in splits)} |"


def paired(cells: Cells, method: str, reference: str, columns: Sequence[tuple[str, str]]) -> Iterator[str]:
    """What a method is better by, seed by seed, in points of held-out and development accuracy after the last round;
    nothing where it was not run."""
    if any(cells.of(*column, method) for column in columns):
        yield f"| {method} minus {reference} | held-out, by seed | mean | development, by seed | mean |"
        yield "|---|---|---|---|---|"
    for task, split in columns:
        by_seed = {cell.seed: cell for cell in cells.of(task, split, reference)}
        pairs = [(cell, by_seed[cell.seed]) for cell in cells.of(task, split, method) if cell.seed in by_seed]
        if pairs:
            held = [100 * (one.held[-1] - other.held[-1]) for one, other in pairs]
            dev = [100 * (one.dev[-1] - other.dev[-1]) for one, other in pairs]
            said = [f"{', '.join(f'{value:+.1f}' for value in part)} | {interval(part)}" for part in (held, dev)]
            yield f"| {task}, {_split(split)} | {' | '.join(said)} |"


def interval(values: Sequence[float]) -> str:
    """The mean, and twice its standard error over seeds or tasks; the mean alone of one or two."""
    if len(values) < 3:
        return f"{statistics.fmean(values):+.1f}"
    return f"{statistics.fmean(values):+.1f} ± {2 * statistics.stdev(values) / len(values) ** 0.5:.1f}"


def _mean(values: Sequence[float], digits: int = 3) -> str:
    return f"{statistics.fmean(values):.{digits}f}"


def _split(split: str) -> str:
    return {"labels": "a label a node"}.get(split, split.replace("dirichlet:", "Dirichlet "))
