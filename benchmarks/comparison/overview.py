# SPDX-License-Identifier: Apache-2.0
"""All tasks and splits at once, as `docs/results.md` has them: how good, at what cost, and who is ahead by how much."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from benchmarks.comparison.cells import HEAD_AT_END, Cell, Cells
from benchmarks.comparison.methods import FROZEN, FULL
from benchmarks.comparison.tables import TARGET, interval

__all__ = ["COLUMNS", "ahead", "quality", "spent"]

COLUMNS: Final = [
    (task, f"dirichlet:{alpha}") for task in ("sst2", "clinc150", "stsb", "mrpc", "cola") for alpha in ("0.5", "0.1")
]
"""Task and split, in their order."""
_NAMES: Final = {"sst2": "SST-2", "clinc150": "150 intents", "stsb": "STS-B", "mrpc": "MRPC", "cola": "CoLA"}
_Column = tuple[str, str]


def quality(cells: Cells, methods: Sequence[str]) -> Iterator[str]:
    """Held-out / development metric after the last round, mean of the seeds that all have who have several, with their
    number; and after an arrow under a head from sums at the end, where that was run.

    Args:
        cells: Of one preset.
        methods: A row each, those that have a head which all share.
    """

    def graded(method: str, column: _Column) -> str:
        seeds = [{cell.seed for cell in cells.of(*column, one)} for one in methods]
        shared = set.intersection(*([some for some in seeds if len(some) > 1] or [{0}]))
        runs = (cells.of(*column, name) for name in (method, method + HEAD_AT_END))
        found = [[cell for cell in of if len(of) == 1 or cell.seed in shared] for of in runs]
        return " → ".join(_metrics(of) for of in found if of)

    yield from _table(cells, methods, graded)


def spent(cells: Cells, methods: Sequence[str]) -> Iterator[str]:
    """Megabytes of a client, up / down in all; and in brackets the round, with processor seconds of all clients, after
    which the metric on held-out rows is 99 % of full fine-tuning's best, or a dash where it never is."""
    yield from _table(cells, methods, lambda method, column: _spent(cells, method, column))


def ahead(cells: Cells, methods: Sequence[str], mine: str = "FedKRSO") -> Iterator[str]:
    """By how many points `mine` is ahead of each method at the end of its run, mean over tasks and splits that both
    have and twice its standard error; megabytes as a multiple of the other's."""
    yield f"| {mine} minus | held-out | development | tasks and splits | times its bytes up, down |"
    yield "|---|---|---|---|---|"
    for method in methods:
        pairs = [pair for column in COLUMNS if (pair := _pair(cells, mine, method, column))]
        if method == mine or not pairs:
            continue
        held = [100 * (_last(one, "held") - _last(other, "held")) for one, other in pairs]
        dev = [100 * (_last(one, "dev") - _last(other, "dev")) for one, other in pairs]
        up, down = (
            statistics.fmean(_last(one, way) / _last(other, way) for one, other in pairs) for way in ("up", "down")
        )
        times = ", ".join(f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}" for ratio in (up, down))
        yield f"| {method} | {interval(held)} | {interval(dev)} | {len(pairs)} | {times} |"


def _table(cells: Cells, methods: Sequence[str], told: Callable[[str, _Column], str]) -> Iterator[str]:
    columns = [column for column in COLUMNS if any(cells.of(*column, method) for method in methods)]
    yield f"| | {' | '.join(_title(column) for column in columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for method in methods:
        said = [told(method, column) for column in columns]
        if any(said):
            yield f"| {method} | {' | '.join(said)} |"


def _title(column: _Column) -> str:
    task, split = column
    return f"{_NAMES[task]}, {split.partition(':')[2]}"


def _metrics(found: Sequence[Cell]) -> str:
    seeds = f" ({len(found)})" if len(found) > 1 else ""
    return f"{_last(found, 'held'):.3f} / {_last(found, 'dev'):.3f}{seeds}"


def _spent(cells: Cells, method: str, column: _Column) -> str:
    found, full = (cells.of(*column, name + HEAD_AT_END) or cells.of(*column, name) for name in (method, FULL))
    if not found:
        return ""
    if shared := {cell.seed for cell in found} & {cell.seed for cell in full}:
        found, full = ([cell for cell in runs if cell.seed in shared] for runs in (found, full))
    size = f"{_last(found, 'up'):.2f} / {_last(found, 'down'):.2f}"
    return f"{size} ({_reached(found, full)})" if full else size


def _reached(found: Sequence[Cell], full: Sequence[Cell]) -> str:
    """On the seeds' mean curve."""
    target = TARGET * max(_curve(full))
    for index, value in enumerate(_curve(found)):
        if value >= target:
            return f"{found[0].rounds[index]}, {statistics.fmean(cell.seconds[index] for cell in found):.0f} s"
    return "-"


def _curve(found: Sequence[Cell]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*(cell.held for cell in found), strict=False)]


def _pair(cells: Cells, mine: str, other: str, column: _Column) -> tuple[list[Cell], list[Cell]] | None:
    """Both methods' runs of the same seeds, with the head at the end where both have it; frozen features are the same
    with every seed and head."""
    for end in (HEAD_AT_END, ""):
        ours, theirs = ({cell.seed: cell for cell in cells.of(*column, name + end)} for name in (mine, other))
        if other == FROZEN:
            theirs = {seed: cell for cell in cells.of(*column, FROZEN) for seed in ours}
        if seeds := sorted(ours.keys() & theirs.keys()):
            return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
    return None


def _last(found: Sequence[Cell], what: str) -> float:
    return statistics.fmean(getattr(cell, what)[-1] for cell in found)
