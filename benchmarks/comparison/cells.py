# SPDX-License-Identifier: Apache-2.0
"""What a run came to, kept in a file of the repository, so that nothing is run twice."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from fedcore.system.durable import write_durably
from research.runs.rates import Rate, Tried
from research.runs.rows import Row, Setup

__all__ = ["HEAD_AT_END", "RATES_SPLIT", "Cell", "Cells", "cell_of", "cells_of"]

RATES_SPLIT: Final = "dirichlet:0.5"
"""On which learning rates are chosen, for all splits."""
HEAD_AT_END: Final = ", head at the end"
"""After a method's name: of the run that a head from sums ends."""


def cells_of(preset: str) -> Path:
    """The file of the runs of one size."""
    return Path(__file__).with_name(f"{preset}.csv")


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run. Of what is measured more than once there is a number for each measurement; megabytes are of one
    client since the run began, up and down, seconds are processor time of all clients."""

    task: str
    split: str
    method: str
    seed: int
    learning_rate: float
    tried: tuple[str, ...]
    """`rate:metric` on the tuning rows; none where there was nothing to choose."""
    rounds: tuple[int, ...]
    held: tuple[float, ...]
    dev: tuple[float, ...]
    own: tuple[float, ...]
    """On the development set, with each client's own share of labels (`research.runs.own`); empty without labels."""
    up: tuple[float, ...]
    down: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What it is a run of."""
        return self.task, self.split, self.method, self.seed

    def before_last(self) -> Cell:
        """The same run without its last measurement, before a head that ends it; under the plain method's name, since
        it is what a run without that head comes to, bit for bit."""
        lists = {name: getattr(self, name)[:-1] for name in _LISTS}
        return msgspec.structs.replace(self, method=self.method.removesuffix(HEAD_AT_END), **lists)

    def rate(self, label: str) -> Rate:
        """What was chosen for its task and method, as the runner keeps it."""
        tried = [Tried(*map(float, one.split(":"))) for one in self.tried]
        return Rate(
            task=self.task, split=RATES_SPLIT, label=label, learning_rate=self.learning_rate, tried=tuple(tried)
        )


def cell_of(name: str, setup: Setup, rows: Iterable[Row], rate: Rate | None) -> Cell:
    """From what the runner keeps of a run.

    Args:
        name: The method's in tables.
        setup: Of the run.
        rows: Its measurements.
        rate: How its learning rate was chosen.
    """
    measured = list(rows)
    seconds, total = [], 0.0
    for row in measured:
        total += row.processor_seconds
        seconds.append(round(total, 1))
    tried = [
        f"{one.learning_rate:g}:{one.metric:.4f}" for one in (rate.tried if rate else ()) if one.metric is not None
    ]
    return Cell(
        task=setup.task,
        split=setup.split,
        method=name,
        seed=setup.seed,
        learning_rate=setup.method.learning_rate,
        tried=tuple(tried),
        rounds=tuple(row.round for row in measured),
        held=tuple(round(row.held, 4) for row in measured),
        dev=tuple(round(row.dev or 0.0, 4) for row in measured),
        own=tuple(round(row.metrics["dev_own"], 4) for row in measured if "dev_own" in row.metrics),
        up=tuple(round(row.uplink_bytes / setup.clients / 1e6, 4) for row in measured),
        down=tuple(round(row.downlink_bytes / setup.clients / 1e6, 4) for row in measured),
        seconds=tuple(seconds),
    )


class Cells:
    """The file: a line for each run, numbers of one run with blanks between.

    Args:
        path: Of it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[tuple[str, str, str, int], Cell] = {}
        if path.exists():
            for line in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
                cell = _read(line)
                self._found[cell.key] = cell

    def __iter__(self) -> Iterator[Cell]:
        """In the order of tasks, splits, methods and seeds."""
        return iter(sorted(self._found.values(), key=lambda cell: cell.key))

    def __contains__(self, key: object) -> bool:
        """Whether a run is there."""
        return key in self._found

    def has(self, task: str) -> bool:
        """Whether there is any run of a task."""
        return any(cell.task == task for cell in self)

    def of(self, task: str, split: str, method: str) -> list[Cell]:
        """All seeds, in order."""
        return [cell for cell in self if cell.key[:3] == (task, split, method)]

    def add(self, cell: Cell) -> None:
        """Keep one more, also on disk."""
        self._found[cell.key] = cell
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Cell.__struct_fields__)
        for one in self:
            writer.writerow([_written(getattr(one, name)) for name in Cell.__struct_fields__])
        write_durably(self._path, text.getvalue().encode())


_LISTS: Final = ("rounds", "held", "dev", "own", "up", "down", "seconds")
"""A number for each measurement; a regression's `own` is empty."""


def _written(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _read(line: dict[str, str]) -> Cell:
    fields: dict[str, Any] = {name: text.split() if name in (*_LISTS, "tried") else text for name, text in line.items()}
    return msgspec.convert(fields, Cell, strict=False)
