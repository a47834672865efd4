# SPDX-License-Identifier: Apache-2.0
"""What a folder of runs came to: one page with plots, and every table as CSV and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, select_autoescape

from fedcore.system.durable import write_durably
from research.reports.comparing import Group, check_reference, groups, reference_of
from research.reports.layout import Table
from research.reports.plots import plots
from research.reports.table import Run, load_runs, write_table
from research.reports.views import budget_table, cost_table, difference_table, dropout_table, final_table
from research.runs.rates import Rates

__all__ = ["write_report"]

_SIZES = (
    "clients",
    "rounds",
    "measure_every",
    "max_length",
    "most_train",
    "most_held",
    "base",
    "model",
    "trained_tensors",
)


def write_report(
    folder: Path, *, reference: str | None = None, targets: Sequence[float] = (), resamples: int = 2000
) -> Path:
    """Write `report.html`, `tables/` and `table.csv` into a folder of runs.

    Args:
        folder: As `fedkrso bench paper --out` made it.
        reference: Label that the others are compared with; by default, and for tasks that have no run of it, FedKRSO's.
        targets: Values of the metric whose cost is wanted.
        resamples: Of the bootstrap.

    Returns:
        The page.

    Raises:
        RunError: There is nothing to report, or a run is damaged.
    """
    runs = load_runs(folder)
    found, rates, sections = groups(runs), Rates(folder), []
    if reference is not None:
        check_reference(found, reference)
    (folder / "tables").mkdir(exist_ok=True)
    for group in found:
        tables = _tables(group, rates, reference, targets, resamples)
        stem = f"{group.task.name}-{group.split.replace(':', '-')}"
        for table in tables:
            write_durably(folder / "tables" / f"{stem}-{table.name}.csv", table.csv().encode())
        text = "\n".join(table.markdown() for table in tables)
        write_durably(
            folder / "tables" / f"{stem}.md",
            f"## {group.task.name}, {group.split}\n\n{_facts(group)}\n\n{text}".encode(),
        )
        sections.append({"group": group, "facts": _facts(group), "tables": tables, "plots": plots(group)})
    write_table(folder / "table.csv", runs)
    page = folder / "report.html"
    write_durably(page, _page(sections, [run for run in runs if not run.whole]).encode())
    return page


def _tables(group: Group, rates: Rates, reference: str | None, targets: Sequence[float], resamples: int) -> list[Table]:
    tables: list[Table] = []
    if group.without_dropout:
        tables.append(final_table(group, rates))
        against = reference_of(group, reference)
        if against is not None and len(group.without_dropout) > 1:
            tables.append(difference_table(group, against, resamples))
        tables += [budget_table(group), cost_table(group, targets)]
    missing = dropout_table(group)
    return [*tables, missing] if missing else tables


def _facts(group: Group) -> str:
    """What all runs of a group have in common, and that something differs where it does."""
    values: dict[str, set[str]] = {}
    for run in group.runs:
        fields = msgspec.to_builtins(run.setup)
        for name, value in [
            *((name, fields[name]) for name in _SIZES),
            *((f"{n}", fields["method"][n]) for n in ("steps", "interval_steps", "batch_size")),
        ]:
            values.setdefault(name, set()).add(" ".join(value) if isinstance(value, list | tuple) else str(value))
    seeds = sorted({run.setup.seed for run in group.runs})
    parts = [
        f"{name.replace('_', ' ')} {' or '.join(sorted(found))}" for name, found in values.items() if found != {""}
    ]
    return f"{'; '.join(parts)}; seeds {', '.join(map(str, seeds))}."


def _page(sections: list[dict[str, Any]], unfinished: Sequence[Run]) -> str:
    environment = Environment(loader=PackageLoader("research.reports"), autoescape=select_autoescape())
    return environment.get_template("report.html").render(
        sections=sections, unfinished=[run.setup.name for run in unfinished]
    )
