# SPDX-License-Identifier: Apache-2.0
"""A participant's round, whatever the method: its intervals with the learning rate's course, tensors trained whole
beside, what is finished on disk, and at the end the update's records."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edge_client.worker.methods.interface import ClientHalf
from edge_client.worker.train.intervals import FinishedIntervals
from edge_client.worker.train.replica import Replica
from fedcore.errors import WorkerError
from fedcore.numbers.accumulator import quantise_rows
from fedcore.numbers.codecs import encoded
from fedcore.numbers.records import Record
from fedcore.round.plan import Plan
from fedcore.round.training import TENSOR_BITS, Training

__all__ = ["Round", "StepFunction", "learning_rate_factor", "train_round", "update_records"]


@dataclass(frozen=True)
class Round:
    """A trained round: the mean loss, how many intervals lay on disk, and the steps that there were."""

    loss: float
    restored: int
    steps: int


StepFunction = Callable[[int], float]
"""Runs forward and backward of one whole batch (number of the step in), leaves gradients, gives the mean loss. May be
called again."""

_WARM_UP = 0.05


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over the first 5 % of a round's steps, then a cosine to a tenth; `step` from 0.

    Example:
        >>> learning_rate_factor(0, 40), learning_rate_factor(2, 40)
        (0.5, 1.0)
    """
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train_round(
    replica: Replica,
    plan: Plan,
    node: str,
    rank: int,
    run_step: StepFunction,
    progress: Callable[[int, int, float], None],
    finished: FinishedIntervals,
    rows: int,
) -> Round:
    """Train a round; afterwards the replica's half holds its changes and the full tensors their trained values.

    Args:
        replica: At the plan's version, opened.
        plan: The round.
        node: This participant.
        rank: r', at most the plan's rank.
        run_step: Forward and backward of a batch.
        progress: Called after every step with (step from 1, steps, loss).
        finished: Where finished intervals go, and where those of a killed worker lie.
        rows: Of this node's data; in one pass they say how many steps there are.

    Raises:
        WorkerError: The loss is not finite.
    """
    training, half = plan.training, replica.half
    steps = training.steps_of(rows)
    half.open(plan, node, rank)
    tensors = list(replica.tensors.values()) if training.trains_tensors else []
    whole = torch.optim.Adam(tensors, lr=training.tensor_learning_rate) if tensors else None
    restored = finished.restore(replica, whole)
    total = restored[-1].loss if restored else 0.0
    # Where a newer one makes older ones unnecessary, only it is there.
    first = restored[-1].interval + 1 if restored else 0
    for interval in range(first, training.intervals_of(rows)):
        optimiser = half.begin(interval)
        begins = interval * training.interval_steps
        for step in range(begins, min(begins + training.interval_steps, steps)):
            loss = _one_step(training, half, optimiser, whole, step, run_step)
            total += loss
            progress(step + 1, steps, loss)
        half.finish(interval)
        del optimiser
        finished.save(interval, total, replica, whole)
    return Round(total / steps, first, steps)


def _one_step(
    training: Training,
    half: ClientHalf,
    optimiser: torch.optim.Optimizer | None,
    whole: torch.optim.Adam | None,
    step: int,
    run_step: StepFunction,
) -> float:
    factor = learning_rate_factor(step, training.steps)
    pairs = (optimiser, training.learning_rate), (whole, training.tensor_learning_rate)
    optimisers = [(one, learning_rate) for one, learning_rate in pairs if one is not None]
    for one, learning_rate in optimisers:
        one.param_groups[0]["lr"] = learning_rate * factor
        one.zero_grad(set_to_none=True)
    loss = half.measure(step, lambda: run_step(step))
    if not math.isfinite(loss):
        raise WorkerError(f"the loss is {loss} at step {step + 1}", remedy="lower method.learning_rate")
    for one, _ in optimisers:
        one.step()
    return loss


def update_records(replica: Replica, plan: Plan) -> Iterator[Record]:
    """The round's changes as quantised records, one at a time.

    Raises:
        UpdateRefused: Training diverged: a value is not finite or too large.
    """
    factor = _clip_factor(replica, plan)
    for name, change in replica.half.changes():
        coding = plan.training.coding(name)
        yield Record(name, encoded(_scaled(change, factor), coding, name), coding.bits, kind=coding.kind)
    for name, change in _tensor_changes(replica, plan):
        yield Record(name, quantise_rows(_scaled(change, factor), TENSOR_BITS, place=name), TENSOR_BITS)


def _scaled(change: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """As it is, not a copy, where nothing is scaled down."""
    return change if factor == 1 else change * np.float32(factor)


def _tensor_changes(replica: Replica, plan: Plan) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Of the tensors trained whole, as matrices."""
    start = replica.start_values()
    for spec in plan.training.sent_tensors(plan.model_schema):
        change = replica.tensors[spec.name].detach().cpu().numpy() - start[spec.name]
        yield spec.name, change.astype(np.float32).reshape(spec.matrix)


def _clip_factor(replica: Replica, plan: Plan) -> float:
    """What an update is scaled down by, so that its norm is the plan's clip at most. Rounding to few bits may take it a
    little beyond: the coordinator scales down once more what it gets, exactly."""
    privacy = plan.training.privacy
    if privacy is None or privacy.level != "node":
        return 1.0
    squares = [
        float(np.square(change, dtype=np.float64).sum())
        for _, change in itertools.chain(replica.half.changes(), _tensor_changes(replica, plan))
    ]
    norm = math.sqrt(sum(squares))
    # What is not finite is refused by name as it is rounded.
    return privacy.clip / norm if math.isfinite(norm) and norm > privacy.clip else 1.0
