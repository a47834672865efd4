# SPDX-License-Identifier: Apache-2.0
"""Which published state is the best so far, by what, and when there was none better for long enough. Pure functions of
a ledger's rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coordinator.job import EvaluationSection
from coordinator.store.rows import RoundRow
from fedcore.registry import METRICS, metric_kind

__all__ = ["Standing", "lower_is_better", "standing_of", "value_of"]

_OWN: Final = {"accuracy": "higher", "loss": "lower", "perplexity": "lower"}
"""Which numbers are better, of what every run or task measures by itself; of all others their registry says it, with
which NumPy is loaded."""


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    Attributes:
        by: What decides: `accuracy`, `loss`, a metric; `nodes.` before it where the nodes' own rows decide.
        best: The round whose published state is the best, the earliest of equals; None where none was measured.
        value: Its number.
        judged: Versions up to this one are measured, as far as they are to be.
        stop_at: The version at which `evaluation.stop_after` measurements in a row had brought nothing better; None
            while that is not so.
    """

    by: str
    best: int | None = None
    value: float | None = None
    judged: int = 0
    stop_at: int | None = None


def standing_of(rows: Sequence[RoundRow], section: EvaluationSection | None) -> Standing | None:
    """How a run stands; None where nothing is measured.

    Args:
        rows: Published rounds, first to last.
        section: Of the job.
    """
    if section is None:
        return None
    on_nodes = section.best_on == "nodes"
    best, value, since, stop_at, judged = None, 0.0, 0, None, 0
    lower = lower_is_better(section.best_name)
    for row in rows:
        found = value_of(row, section.best_name, on_nodes=on_nodes)
        if judged == row.round - 1 and _is_judged(row, rows, section, on_nodes=on_nodes):
            judged = row.round
        if found is None:
            continue
        if best is None or (found < value if lower else found > value):
            best, value, since = row.round, found, 0
            continue
        since += 1
        if stop_at is None and section.stop_after and since >= section.stop_after:
            stop_at = row.round
    by = f"nodes.{section.best_name}" if on_nodes else section.best_name
    return Standing(by, best, None if best is None else value, judged, stop_at)


def value_of(row: RoundRow, name: str, *, on_nodes: bool) -> float | None:
    """A round's number of a name; None where it was not measured.

    Args:
        row: The round.
        name: `accuracy`, `loss` or a metric.
        on_nodes: Of the nodes' own rows, not of the coordinator's.
    """
    source = row.nodes if on_nodes else row
    if source is None or source.accuracy is None:
        return None
    return {"accuracy": source.accuracy, "loss": source.loss}.get(name, source.metrics.get(name))


def lower_is_better(name: str) -> bool:
    """Whether a smaller number of that name is a better one.

    Example:
        >>> lower_is_better("perplexity"), lower_is_better("rouge_l")
        (True, False)
    """
    if name in _OWN:
        return _OWN[name] == "lower"
    known = dict(METRICS.items()).get(name)
    return known is not None and metric_kind(known).better == "lower"


def _is_judged(row: RoundRow, rows: Sequence[RoundRow], section: EvaluationSection, *, on_nodes: bool) -> bool:
    if on_nodes:
        # What its nodes say of a state comes with the next round's updates.
        return row.nodes is not None or row.round < rows[-1].round
    return row.accuracy is not None or not section.is_due(row.round)
