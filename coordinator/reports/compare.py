# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: accuracy at equal rounds, equal megabytes and equal seconds, and what of their jobs differs. Pure
functions."""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from coordinator.reports.objects import round_objects
from coordinator.reports.plots import COLOURS, close_up, figure, svg
from coordinator.reports.runs import RunRecord
from fedcore.system.logs import printable

__all__ = ["Comparison", "Curve", "compare", "signed", "write_comparison"]

# What differs between any two runs and says nothing about the model.
_UNRELATED = {"run", "broker", "trust"}
_MOST_CHARACTERS = 60
# Of the smallest run's total, beside the largest one's.
_SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Curve:
    """A run's accuracy as it went on: one value a measured round."""

    letter: str
    """Stands for the run in tables."""
    name: str
    rounds: tuple[int, ...]
    accuracy: tuple[float, ...]
    uplink_megabytes: tuple[float, ...]
    """Sent up by all nodes until then."""
    seconds: tuple[float, ...]
    """In rounds until then."""

    def at_round(self, server_round: int) -> float | None:
        """Accuracy of that round; None where it is not measured."""
        return dict(zip(self.rounds, self.accuracy, strict=True)).get(server_round)

    def within(self, spent: Sequence[float], limit: float) -> float | None:
        """The last accuracy that was reached with no more than `limit` spent; None where there is none yet."""
        reached = [value for value, so_far in zip(self.accuracy, spent, strict=True) if so_far <= limit * (1 + 1e-9)]
        return reached[-1] if reached else None


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; each table has one value a run, None where a run has none."""

    curves: tuple[Curve, ...]
    by_round: list[tuple[float, list[float | None]]]
    by_megabytes: list[tuple[float, list[float | None]]]
    by_seconds: list[tuple[float, list[float | None]]]
    paired: list[dict[str, Any]]
    """The other runs against the first at rounds that both have measured: how many, mean, least, largest and last
    difference."""
    jobs: list[tuple[str, list[str]]]
    """Keys of the job files that differ, with each run's value."""


def compare(records: Sequence[RunRecord]) -> Comparison:
    """Put runs side by side; the first is what the others are measured against."""
    curves = tuple(_curve(letter, record) for letter, record in zip(_letters(), records, strict=False))
    numbers = sorted({number for curve in curves for number in curve.rounds})
    return Comparison(
        curves,
        [(number, [curve.at_round(number) for curve in curves]) for number in numbers],
        _spent(curves, [curve.uplink_megabytes for curve in curves]),
        _spent(curves, [curve.seconds for curve in curves]),
        [_paired(curves[0], other) for other in curves[1:]],
        _jobs(records),
    )


def write_comparison(path: Path, comparison: Comparison) -> None:
    """One page that needs nothing else."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("coordinator.reports"), autoescape=select_autoescape())
    environment.filters["share"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["signed"] = lambda value: "–" if value is None else signed(value)
    plots = [
        _plot(comparison, "round", "rounds", "Accuracy by round"),
        _plot(comparison, "megabytes sent up by all nodes so far", "uplink_megabytes", "Accuracy by megabyte"),
        _plot(comparison, "seconds in rounds so far", "seconds", "Accuracy by time"),
    ]
    text = environment.get_template("compare.html").render(c=comparison, plots=plots)
    path.write_text(text, encoding="utf-8")


def signed(difference: float) -> str:
    """A difference with its sign; nothing is not less than nothing.

    Example:
        >>> signed(-1e-9), signed(0.0151)
        ('+0.000', '+0.015')
    """
    return f"{round(difference, 3) + 0.0:+.3f}"


def _letters() -> Any:
    return (f"{letter}{number or ''}" for number in itertools.count() for letter in string.ascii_uppercase)


def _curve(letter: str, record: RunRecord) -> Curve:
    rows = [row for row in round_objects(record) if row["accuracy"] is not None]
    return Curve(
        letter,
        printable(record.name),
        tuple(row["round"] for row in rows),
        tuple(row["accuracy"] for row in rows),
        tuple(row["uplink_bytes_total"] / 1e6 for row in rows),
        tuple(row["seconds_total"] for row in rows),
    )


def _spent(curves: Sequence[Curve], spent: Sequence[Sequence[float]]) -> list[tuple[float, list[float | None]]]:
    totals = [each[-1] for each in spent if each]
    if not totals:
        return []
    limits = sorted({*(share * min(totals) for share in _SHARES), max(totals)})
    return [(limit, [curve.within(each, limit) for curve, each in zip(curves, spent, strict=True)]) for limit in limits]


def _paired(first: Curve, other: Curve) -> dict[str, Any]:
    both = [
        (b - a) for n in first.rounds if (a := first.at_round(n)) is not None and (b := other.at_round(n)) is not None
    ]
    if not both:
        return {"run": other.letter, "rounds": 0, "mean": None, "least": None, "largest": None, "last": None}
    return {
        "run": other.letter,
        "rounds": len(both),
        "mean": sum(both) / len(both),
        "least": min(both),
        "largest": max(both),
        "last": both[-1],
    }


def _jobs(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    flat = [_flat(msgspec.to_builtins(record.job)) for record in records]
    keys = sorted({key for job in flat for key in job if key.split(".")[0] not in _UNRELATED})
    rows = [(key, [job.get(key, "") for job in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(value: Any, key: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        return {
            name: word
            for inner, part in value.items()
            for name, word in _flat(part, f"{key}.{inner}" if key else inner).items()
        }
    word = printable(value if isinstance(value, str) else json.dumps(value))
    return {key: word if len(word) <= _MOST_CHARACTERS else f"{word[: _MOST_CHARACTERS - 3]}..."}


def _plot(comparison: Comparison, label: str, field: str, title: str) -> dict[str, str]:
    drawing, axes = figure()
    for index, curve in enumerate(comparison.curves):
        # A dollar sign would begin a formula.
        name = f"{curve.letter}  {curve.name}".replace("$", r"\$")
        style = ("-", "--", ":", "-.")[index // len(COLOURS) % 4]
        axes.plot(
            getattr(curve, field),
            curve.accuracy,
            style,
            marker="o",
            markersize=4,
            color=COLOURS[index % len(COLOURS)],
            label=name,
        )
    axes.set(xlabel=label, ylabel="held-out accuracy")
    if values := [value for curve in comparison.curves for value in curve.accuracy]:
        close_up(axes, values)
    axes.locator_params(axis="x", integer=field == "rounds")
    drawing.legend(frameon=False, loc="outside lower center", ncols=2, fontsize="small")
    last = ", ".join(f"{curve.name} {curve.accuracy[-1]:.3f}" for curve in comparison.curves if curve.accuracy)
    return svg(drawing, title, f"{title}; last values: {last or 'none'}.")
