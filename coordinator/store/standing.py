# SPDX-License-Identifier: Apache-2.0
"""Which published state is the best so far, by what, and when there was none better for long enough. Pure functions of
a ledger's rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from coordinator.job import EvaluationSection
from coordinator.store.rows import RoundRow
from fedcore.registry import METRICS, metric_kind

__all__ = ["Standing", "Standings", "lower_is_better", "standing_of", "value_of"]

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
    return Standings(section).of(rows)


class Standings:
    """How a run stands, asked again and again while its rounds come: what follows from rows that are the same objects
    as before is not worked out again.

    Args:
        section: Of the job.
    """

    def __init__(self, section: EvaluationSection | None) -> None:
        self._section = section
        self._rows: Sequence[RoundRow] = ()
        # After so many rows.
        self._after: list[_Tally] = [_Tally()]

    def of(self, rows: Sequence[RoundRow]) -> Standing | None:
        """As `standing_of`.

        Args:
            rows: Published rounds, first to last; not changed afterwards.
        """
        section = self._section
        if section is None:
            return None
        # The last one of before may stand otherwise now that another follows it.
        same = max(0, min(len(self._rows), len(rows)) - 1)
        for place, (before, row) in enumerate(zip(self._rows[:same], rows, strict=False)):
            if before is not row:
                same = place
                break
        self._rows = rows
        del self._after[same + 1 :]
        for row in rows[same:]:
            self._after.append(_next(self._after[-1], row, rows, section))
        found = self._after[-1]
        by = f"nodes.{section.best_name}" if section.best_on == "nodes" else section.best_name
        return Standing(by, found.best, None if found.best is None else found.value, found.judged, found.stop_at)


@dataclass(frozen=True)
class _Tally:
    best: int | None = None
    value: float = 0.0
    since: int = 0
    """Measurements since the best one."""
    judged: int = 0
    stop_at: int | None = None


def _next(tally: _Tally, row: RoundRow, rows: Sequence[RoundRow], section: EvaluationSection) -> _Tally:
    """The tally with one row more."""
    on_nodes = section.best_on == "nodes"
    found, judged = value_of(row, section.best_name, on_nodes=on_nodes), tally.judged
    if judged == row.round - 1 and _is_judged(row, rows, section, on_nodes=on_nodes):
        judged = row.round
    if found is None:
        return replace(tally, judged=judged)
    lower = lower_is_better(section.best_name)
    if tally.best is None or (found < tally.value if lower else found > tally.value):
        return _Tally(row.round, found, 0, judged, tally.stop_at)
    since = tally.since + 1
    stops = tally.stop_at is None and section.stop_after and since >= section.stop_after
    return replace(tally, since=since, judged=judged, stop_at=row.round if stops else tally.stop_at)


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
