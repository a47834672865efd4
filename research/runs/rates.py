# SPDX-License-Identifier: Apache-2.0
"""Learning rates chosen on the tuning rows: `rates.json` in the folder of runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from fedcore.errors import ConfigError
from fedcore.system.durable import write_durably
from research.data.tasks import task_by_name
from research.runs.methods import Named
from research.runs.rows import Row, Setup, rounds_done

__all__ = ["Rate", "Rates", "Tried", "chosen"]

_FILE = "rates.json"


class Tried(msgspec.Struct, frozen=True):
    """One learning rate of the grid, with the last round's metric and loss on the tuning rows; None where the run
    failed."""

    learning_rate: float
    metric: float | None
    loss: float | None = None


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """The best of a grid."""

    task: str
    split: str
    label: str
    learning_rate: float
    tried: tuple[Tried, ...]

    @property
    def at_edge(self) -> bool:
        """Whether the grid ends there: a better one may lie beyond."""
        rates = [one.learning_rate for one in self.tried]
        return self.learning_rate in (min(rates), max(rates))

    def beyond(self) -> float | None:
        """The next rate past the edge at which the best lies, in the steps 1, 3, 10; None where it lies inside.

        Example:
            >>> tried = tuple(Tried(rate, 1.0 - rate) for rate in (3e-4, 1e-3))
            >>> Rate(task="sst2", split="iid", label="x", learning_rate=3e-4, tried=tried).beyond()
            0.0001
        """
        if not self.at_edge:
            return None
        smallest = self.learning_rate == min(one.learning_rate for one in self.tried)
        return float(f"{self.learning_rate / 3 if smallest else self.learning_rate * 10 / 3:.1g}")


class Rates:
    """The tuned learning rates of a folder of runs.

    Args:
        folder: Of the runs.

    Raises:
        ConfigError: The file is not what was written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        try:
            self.all = msgspec.json.decode(self._path.read_bytes(), type=list[Rate])
        except FileNotFoundError:
            self.all = []
        except (msgspec.DecodeError, OSError) as error:
            raise ConfigError(
                f"cannot be read: {error}", place=str(self._path), remedy="delete it and tune again"
            ) from None

    def has(self, task: str, split: str, label: str) -> bool:
        """Whether this very label was tuned."""
        return self.find(task, split, label) is not None

    def find(self, task: str, split: str, label: str) -> Rate | None:
        """What was found for a label."""
        return next((rate for rate in self.all if (rate.task, rate.split, rate.label) == (task, split, label)), None)

    def of(self, task: str, split: str, named: Named) -> float | None:
        """The learning rate of a method: its own, else that of the same method without options; None if there is
        neither."""
        found = self.find(task, split, named.label) or self.find(task, split, named.name)
        return None if found is None else found.learning_rate

    def forget(self, task: str, split: str, label: str) -> None:
        """Have a label tuned anew; on disk only what is added after it changes anything."""
        self.all = [rate for rate in self.all if (rate.task, rate.split, rate.label) != (task, split, label)]

    def add(self, rates: Iterable[Rate]) -> None:
        """Keep more rates; newer ones take the place of older."""
        new = list(rates)
        for rate in new:
            self.forget(rate.task, rate.split, rate.label)
        self.all += new
        write_durably(self._path, msgspec.json.format(msgspec.json.encode(self.all)))


def chosen(runs: Sequence[tuple[Setup, Sequence[Row]]]) -> list[Rate]:
    """The best learning rate of each task and label by the last round's metric; of equal ones that with the smaller
    loss, then the smaller.

    A label none of whose runs came to its end is left out.
    """
    groups: dict[tuple[str, str, str], list[Tried]] = {}
    for setup, rows in runs:
        whole = rounds_done(rows) == setup.rounds and math.isfinite(rows[-1].held)
        tried = (
            Tried(setup.method.learning_rate, rows[-1].held, rows[-1].loss)
            if whole
            else Tried(setup.method.learning_rate, None)
        )
        groups.setdefault((setup.task, setup.split, setup.label), []).append(tried)
    found = []
    for (task, split, label), tried_ones in groups.items():
        sign = 1.0 if task_by_name(task).higher_is_better else -1.0
        order = sorted(tried_ones, key=lambda one: one.learning_rate)
        done = [(sign * one.metric, -(one.loss or 0.0), -one.learning_rate) for one in order if one.metric is not None]
        if done:
            rate = -max(done)[-1]
            found.append(Rate(task=task, split=split, label=label, learning_rate=rate, tried=tuple(order)))
    return found
