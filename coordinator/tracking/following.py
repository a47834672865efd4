# SPDX-License-Identifier: Apache-2.0
"""Brings a run's numbers to sinks: those that are there, and with `follow` those that come. A process of its own, which
reads the ledger: whatever a sink does, the run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from coordinator.reports.objects import job_words, round_objects
from coordinator.reports.runs import RunRecord, read_run
from coordinator.tracking.sinks import Sink, Tracked, open_sink

__all__ = ["numbers_of", "track", "tracked"]

_LOOK_SECONDS: Final = 2.0
# In a row's columns, but no number of the round.
_NO_NUMBERS: Final = ("run", "round", "nodes")


def tracked(record: RunRecord) -> Tracked:
    """What sinks are told of a run.

    Args:
        record: The run.
    """
    return Tracked(record.name, record.started_at, {"method": record.view.method, **job_words(record)})


def numbers_of(row: dict[str, Any]) -> dict[str, float]:
    """The numbers in a row of `round_objects`, by name; what was not measured is left out.

    Args:
        row: Of a round.

    Example:
        >>> numbers_of({"run": "t", "round": 3, "participants": 2, "nodes": ["a"], "accuracy": 0.5, "loss": None})
        {'participants': 2.0, 'accuracy': 0.5}
    """
    return {
        name: float(value)
        for name, value in row.items()
        if name not in _NO_NUMBERS and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def track(
    root: Path,
    targets: Sequence[str],
    *,
    follow: bool = False,
    told: Callable[[int], None] = lambda rounds: None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Bring a run's numbers to sinks.

    Args:
        root: The run's folder.
        targets: `NAME:TARGET` each.
        follow: Until the run has ended; it may be killed and resumed meanwhile.
        told: Called with the rounds so far, whenever there are more.
        sleep: Waits so many seconds between two looks.

    Returns:
        Rounds that were brought.

    Raises:
        FedkrsoError: The run cannot be read, or a sink not be used.
    """
    record = read_run(root)
    sinks: list[Sink] = []
    rounds, ended = -1, False
    try:
        for target in targets:
            sinks.append(open_sink(target, tracked(record)))
        while True:
            rows = round_objects(record)
            for row in rows:
                at = record.started_at + row["seconds_total"]
                for sink in sinks:
                    sink.put(row["round"], at, numbers_of(row))
            if len(rows) > rounds:
                rounds = len(rows)
                told(rounds)
            ended = record.state == "finished"
            if ended or not follow:
                return rounds
            sleep(_LOOK_SECONDS)
            record = read_run(root)
    finally:
        for sink in sinks:
            sink.close(ended=ended)
