# SPDX-License-Identifier: Apache-2.0
"""The coordinator's part of split learning: the back of the model trains on the activations that a round's nodes sent.

It is a round like a node's (`edge_client.worker.train.trainer`): a replica at the round's version, the plan's steps,
batches in an order of the run's seed, finished intervals on disk. A text is as many tokens as it has activations, and
the front, which computes nothing, gives these out for it. Positions, masks and norms are the model's own."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.worker.architecture.cut import each_text, put_out
from edge_client.worker.data.tasks import Encoded
from edge_client.worker.methods.split import SplitBack
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.train.highwater import begin_peak, peak_bytes
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Hooks, Trainer
from fedcore.config.tasks import task_of
from fedcore.device.memoryplan import MemoryPlan
from fedcore.model.update import IndexedUpdate, WeightedUpdate
from fedcore.round.plan import Plan
from fedcore.round.training.split import ACTIVATION_UNIT, ACTIVATIONS, BEGINS, BLOCK_TOKENS, TARGET_UNIT, TEXTS
from fedcore.worker.work import WORKS, Part, Work, Worked

__all__ = ["trained_back"]

_CPU = torch.device("cpu")


def trained_back(work: Work) -> Worked:
    """Train the back on a round's activations, and write its changes as an update.

    Args:
        work: With a plan of split learning.

    Raises:
        FedkrsoError: The model or an update is not what the plan says, the loss is not finite, or memory is too little.
    """
    started = time.monotonic()
    begin_peak()
    plan = msgspec.structs.replace(work.plan, training=work.plan.training.worked)
    folder = Path(work.folder)
    replica = Replica(plan, Path(work.model_folder), folder, _CPU, torch.float32)
    if plan.version:
        replica.adopt(Path(work.state), plan.training.generation, "whole", work.digest)
    half = replica.half
    assert isinstance(half, SplitBack)
    # Norms and activations as nodes compute them, also where these have the back.
    replica.lighten()
    texts = _Texts(work, folder / "activations.bin")
    rows = texts.rows(replica.model)
    handle = put_out(half.last, texts.given)
    try:
        # Batches follow from seed and round alone, whatever else the work's key is of.
        hooks, intervals = Hooks(see=texts.see), _intervals(folder / "intervals", work.key)
        trainer = Trainer(replica, rows, intervals, WORKS, WORKS, replica.model.pad_id, _CPU, hooks)
        _, trained = trainer.train(plan, _memory_steps(plan), Path(work.path))
    finally:
        handle.remove()
        # Not kept beside the updates, which have a time to go.
        texts.path.unlink(missing_ok=True)
    return Worked(trained.loss, time.monotonic() - started, peak_bytes())


def _intervals(folder: Path, key: str) -> Path:
    """Where finished intervals of this work lie; those of other updates go."""
    for other in folder.glob("*"):
        if other.name != key:
            shutil.rmtree(other)
    return folder / key


def _memory_steps(plan: Plan) -> tuple[MemoryPlan, ...]:
    """Whole batches first; where memory runs out, halves of them, and at last recomputing."""
    sizes = [plan.training.batch_size]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    whole = [MemoryPlan(micro_batch_size=size) for size in sizes]
    return (*whole, MemoryPlan(micro_batch_size=1, checkpointing=True))


class _Texts:
    """Activations of all nodes' texts, on disk.

    Args:
        work: What is to be done.
        path: Of the file with the numbers: (tokens, n), int8 or int16.

    Raises:
        UpdateRefused: An update's file is not what was admitted any more.
    """

    def __init__(self, work: Work, path: Path) -> None:
        plan = work.plan
        self.path, self._task = path, plan.task
        self._kind = np.int8 if plan.training.bits <= 8 else np.int16
        self._spans: list[tuple[int, int]] = []
        self._targets: list[float] = []
        self._of: dict[int, int] = {}
        self._part: Sequence[Encoded] = ()
        exponents: list[NDArray[np.int8]] = []
        start = 0
        with path.open("wb") as file:
            for part in work.parts:
                update = IndexedUpdate(WeightedUpdate(Path(part.path), part.header, 1), plan)
                marks, targets = update.record(TEXTS)[0].part.values()
                tokens = int(np.count_nonzero(marks))
                for rows, exponent in _blocks(update, tokens):
                    file.write(rows.astype(self._kind).tobytes())
                    exponents.append(exponent)
                begins = np.flatnonzero(marks == BEGINS)
                for place, stop in zip(begins, [*begins[1:], tokens], strict=True):
                    self._spans.append((start + int(place), start + int(stop)))
                    self._targets.append(float(targets[place]) * TARGET_UNIT)
                self._leave_out(part, len(begins), plan)
                start += tokens
        scales = np.ldexp(np.float32(ACTIVATION_UNIT), np.concatenate(exponents).astype(np.int32))
        self._scales = torch.from_numpy(np.asarray(scales, np.float32))
        self._numbers = torch.from_numpy(
            np.memmap(path, self._kind, mode="r+", shape=(start, path.stat().st_size // start // self._kind().itemsize))
        )

    def rows(self, model: BuiltModel) -> list[Encoded]:
        """What stands for the texts: as many tokens, and the target. What the tokens are nobody looks at."""
        # No padding, by which some classifiers find a text's last token.
        token = 1 if model.pad_id == 0 else 0
        labels = not task_of(self._task).scale
        found = []
        for number, ((start, stop), target) in enumerate(zip(self._spans, self._targets, strict=True)):
            types = (0,) * (stop - start) if model.takes_types else None
            row = Encoded((token,) * (stop - start), types, round(target) if labels else target)
            self._of[id(row)] = number
            found.append(row)
        return found

    def see(self, part: Sequence[Encoded]) -> None:
        """These go through the model next."""
        self._part = part

    def given(self, said: Tensor) -> Tensor:
        """Their activations, in the place of what the front gives out, (b, t, n) or all in one row."""
        given = torch.zeros_like(said)
        for view, row in zip(each_text(given, [len(row.ids) for row in self._part]), self._part, strict=True):
            rows = slice(*self._spans[self._of[id(row)]])
            view.copy_(self._numbers[rows].to(said.dtype) * self._scales[rows, None])
        return given

    def _leave_out(self, part: Part, texts: int, plan: Plan) -> None:
        """Of a node whose texts do not all count, those that lots do not fall on."""
        if part.examples >= texts:
            return
        first = len(self._spans) - texts

        def lot(number: int) -> bytes:
            words = f"fedkrso split 1/{plan.training.run_seed}/{plan.round}/{part.header.node}/{number}"
            return hashlib.sha256(words.encode()).digest()

        kept = [first + number for number in sorted(sorted(range(texts), key=lot)[: part.examples])]
        self._spans[first:] = [self._spans[place] for place in kept]
        self._targets[first:] = [self._targets[place] for place in kept]


def _blocks(update: IndexedUpdate, tokens: int) -> Iterator[tuple[NDArray[Any], NDArray[np.int8]]]:
    """Rows that a text has, block by block, and their exponents."""
    for number in range(-(-tokens // BLOCK_TOKENS)):
        found = update.record(f"{ACTIVATIONS}{number}")[0].integers
        rows = min(BLOCK_TOKENS, tokens - number * BLOCK_TOKENS)
        yield found.q[:rows], found.exponent[:rows]
