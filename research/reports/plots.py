# SPDX-License-Identifier: Apache-2.0
"""The plots of a report as SVG: the metric by round, by bytes sent, by time."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from research.reports.comparing import Group
from research.reports.table import Run
from research.reports.views import seconds_of

__all__ = ["plots"]

_COLOURS = (
    "#1b6ca8",
    "#d1495b",
    "#2a9d8f",
    "#e9a23b",
    "#6d597a",
    "#457b9d",
    "#8ab17d",
    "#bc6c25",
    "#5c6b78",
    "#b79bd0",
)
_STYLES = ("-", "--", ":")


def plots(group: Group) -> list[dict[str, str]]:
    """Of a group without dropout; none where there is nothing without."""
    if not group.without_dropout:
        return []

    def sent(run: Run) -> list[float]:
        return [row.uplink_bytes / run.setup.clients / 1e6 for row in run.rows]

    def seconds(run: Run) -> list[float]:
        return list(itertools.accumulate(seconds_of(row) for row in run.rows))

    # Between the smallest and the largest method there are four powers of ten.
    ends = [sent(run)[-1] for by_seed in group.without_dropout.values() for run in by_seed.values()]
    wide = max(ends) > 30 * max(min(ends), 1e-9)
    name = group.task.metric_name
    return [
        _plot(group, lambda run: [float(row.round) for row in run.rows], "round", f"{name.capitalize()} by round"),
        _plot(group, sent, "megabytes up, one client", f"{name.capitalize()} by bytes up", log=wide),
        _plot(group, seconds, "seconds of training, all clients", f"{name.capitalize()} by time"),
    ]


def _plot(
    group: Group, place: Callable[[Run], list[float]], label: str, title: str, *, log: bool = False
) -> dict[str, str]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    styles = itertools.product(_STYLES, _COLOURS)
    for (method, by_seed), (style, colour) in zip(
        sorted(group.without_dropout.items()), itertools.cycle(styles), strict=False
    ):
        x, mean, deviation = _line(by_seed, place)
        axes.plot(x, mean, style, color=colour, label=method, linewidth=1.6)
        if len(by_seed) > 1:
            axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel=label, ylabel=f"{group.task.metric_name}, held-out rows")
    if log:
        axes.set_xscale("log")
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize="small")
    buffer = io.StringIO()
    # No date and no random names, so that equal runs give equal pages.
    with rc_context({"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return {
        "title": title,
        "alt": f"{title}, a line for each method: mean and standard deviation over seeds.",
        "svg": text[text.index("<svg") :],
    }


def _line(by_seed: Mapping[int, Run], place: Callable[[Run], list[float]]) -> tuple[Any, Any, Any]:
    """Mean place, mean and standard deviation of the metric, for the rounds after which all seeds were measured."""
    runs = list(by_seed.values())
    rounds = set.intersection(*({row.round for row in run.rows} for run in runs))
    values = np.array([[row.held for row in run.rows if row.round in rounds] for run in runs])
    places = np.array([[x for row, x in zip(run.rows, place(run), strict=True) if row.round in rounds] for run in runs])
    deviation = values.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(rounds))
    return places.mean(axis=0), values.mean(axis=0), deviation
