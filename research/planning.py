# SPDX-License-Identifier: Apache-2.0
"""From a command line to the runs it means, in their order."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fedcore.data.splits import Split, deal
from fedcore.errors import ConfigError
from fedcore.fields.types import BaseKind, HeadBegin
from fedcore.methods import server_half
from fedcore.methods.interface import MethodSettings
from research.data.splits import LEAST_EXAMPLES, parse_split
from research.data.tasks import Task, check_split, read_parts, task_by_name
from research.runs.methods import Named, settings_of
from research.runs.presets import Preset
from research.runs.rates import Rates
from research.runs.rows import Setup

__all__ = ["GRID", "Request", "check_data", "planned", "planned_tuning"]

GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Learning rates that are tried, as factors on a method's default."""
_TUNING_SEED = 1_000_003


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        rates_of: The task whose learning rates those tasks take that were not tuned.
        rates_split: The split whose learning rates are taken where this one was not tuned.
        changes: Fields of `Setup` that differ from the preset's.
    """

    tasks: Sequence[Task]
    methods: Sequence[Named]
    split: Split
    seeds: Sequence[int]
    preset: Preset
    base: BaseKind = "int8"
    dropouts: Sequence[float] = (0.0,)
    rates_of: str | None = None
    rates_split: Split | None = None
    changes: dict[str, Any] = field(default_factory=dict)


def planned(request: Request, rates: Rates) -> list[Setup]:
    """The runs: seed by seed, so that all methods can be compared early, each with its tuned learning rate where there
    is one.

    Raises:
        ConfigError: A method cannot have what the preset or its brackets say, or a task cannot be split so.
    """
    return [
        _setup(request, named, task, seed, dropout, _rate(request, rates, task, named))
        for seed in request.seeds
        for task in request.tasks
        for dropout in request.dropouts
        for named in request.methods
    ]


def planned_tuning(request: Request, rates: Rates, grid: Sequence[float] = GRID) -> list[Setup]:
    """Shorter runs, one for each task, method and learning rate of the grid; not where brackets or earlier tuning say
    the rate."""
    found = []
    for task in request.tasks:
        for named in request.methods:
            if "learning_rate" in named.options or rates.has(task.name, str(request.split), named.label):
                continue
            default = settings_of(named, request.preset.settings(named.name)).learning_rate
            for factor in grid:
                # Two digits: what a table shows is what was used.
                rate = float(f"{default * factor:.2g}")
                setup = _setup(request, named, task, _TUNING_SEED, 0.0, rate, request.preset.tune_rounds)
                found.append(msgspec.structs.replace(setup, tune=True))
    return found


def check_data(setups: Sequence[Setup], folder: Path) -> None:
    """Check that all runs have data enough, before the first one starts.

    Raises:
        DataError: A file is not there, or not what it should be.
        ConfigError: There are too few rows for so many clients.
    """
    groups: dict[tuple[str, int, int], list[Hashable]] = {}
    for setup in setups:
        key = setup.task, setup.most_train, setup.most_held
        if key not in groups:
            parts = read_parts(
                task_by_name(setup.task),
                folder,
                setup.max_length,
                most_train=setup.most_train,
                most_held=setup.most_held,
            )
            groups[key] = [row.group for row in parts.train]
        deal(groups[key], setup.clients, parse_split(setup.split), setup.seed, least=LEAST_EXAMPLES)


def _rate(request: Request, rates: Rates, task: Task, named: Named) -> float | None:
    """Its own, else that of the same task with the other split, else that of the other task."""
    tasks, splits = (task.name, request.rates_of), (request.split, request.rates_split)
    places = [(one, str(split)) for one in tasks if one for split in splits if split]
    return next((rate for place in places if (rate := rates.of(*place, named)) is not None), None)


def _setup(
    request: Request,
    named: Named,
    task: Task,
    seed: int,
    dropout: float,
    learning_rate: float | None,
    most_rounds: int | None = None,
) -> Setup:
    check_split(task, request.split)
    preset = request.preset
    fields: dict[str, Any] = {
        "rounds": preset.rounds,
        "measure_every": preset.measure_every,
        "clients": preset.clients,
        "max_length": preset.max_length,
        "most_train": preset.most_train,
        "most_held": preset.most_held,
        "most_dev": preset.most_dev,
        "micro_batch_size": preset.micro_batch_size,
        **request.changes,
    }
    method = settings_of(named, preset.settings(named.name), learning_rate)
    fields["rounds"] = min(fields["rounds"], most_rounds or fields["rounds"])
    head, again = _head_of(named, method), 0
    if named.usual.again and head == "ridge":
        again, fields["rounds"] = _with_heads(named.label, named.usual.again, fields["rounds"] - 1)
    setup = Setup(
        label=named.label,
        method=method,
        task=task.name,
        split=str(request.split),
        seed=seed,
        base=named.base or request.base,
        head=head,
        again=again,
        pooling=named.usual.pooling,
        average_last=named.usual.average,
        trained_tensors=named.usual.trained,
        dropout=dropout,
        **fields,
    )
    try:
        # The constructor checks nothing.
        return msgspec.convert(msgspec.to_builtins(setup), Setup)
    except msgspec.ValidationError as error:
        raise ConfigError(
            str(error).replace("`", "").replace(" - at $.", ", at "), place="fedkrso bench paper"
        ) from None


def _with_heads(label: str, again: int, own: int) -> tuple[int, int]:
    """Rounds of the method between heads from sums, and how many rounds a run of so many of the method's then has."""
    again = min(again, own)
    if not again or own % again:
        raise ConfigError(f"heads after {again} of {own} rounds each do not end it", place=f"--methods {label}")
    return again, 1 + own + own // again


def _head_of(named: Named, method: MethodSettings) -> HeadBegin:
    """What a new head begins with; a command's `--head` is meant for methods that can have it."""
    training = server_half(method).training(1, 0)
    return "random" if not named.own_head and (not training.shares_model or training.one_pass) else named.usual.head
