# SPDX-License-Identifier: Apache-2.0
"""FedKRSO's client half (arXiv 2602.03019, algorithm 2): local training in the round's subspaces, interval by interval.

Each interval trains only the factor B (m, r) of one subspace, from zero, with an Adam of its own (moments and step counter both start
again). Weight decay is zero: decay of W cannot be expressed in accumulators. The full tensors keep one Adam for the round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from edge_client.worker.intervals import FinishedIntervals, Progressed
from edge_client.worker.replica import Replica
from fedcore.accumulator import quantise_rows
from fedcore.errors import WorkerError
from fedcore.plan import Plan
from fedcore.records import Record
from fedcore.schedule import interval_order
from fedcore.training import TENSOR_BITS, SubspaceTraining, Training

__all__ = ["Round", "StepFunction", "learning_rate_factor", "train_round", "update_records"]


@dataclass(frozen=True)
class Round:
    """A trained round: the subspaces used in ascending order, the largest rank, the mean loss, and how many intervals lay on disk."""

    used: tuple[int, ...]
    rank: int
    loss: float
    restored: int


StepFunction = Callable[[int], float]
"""Runs forward and backward of one whole batch (number of the step in), leaves gradients, gives the mean loss."""

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
    key: str,
) -> Round:
    """Train a round; afterwards the layers hold its accumulators and the full tensors their trained values.

    Args:
        replica: At the plan's version, opened.
        plan: The round.
        node: This participant.
        rank: r', at most the plan's rank.
        run_step: Forward and backward of a batch.
        progress: Called after every step with (step from 1, steps, loss).
        finished: Where finished intervals go, and where those of a killed worker lie.
        key: Of the round, for `finished`.

    Raises:
        WorkerError: The loss is not finite.
    """
    training = plan.training
    assert isinstance(training, SubspaceTraining)
    order = interval_order(training.order, training.run_seed, plan.round, len(training.seeds), training.intervals, node)
    steps = training.intervals * training.interval_steps
    tensors = list(replica.tensors.values())
    whole = torch.optim.Adam(tensors, lr=training.tensor_learning_rate) if tensors else None
    restored = finished.restore(replica, whole)
    total = restored[-1].loss if restored else 0.0
    largest = max([rank, *(p.rank for p in restored)])
    for interval, subspace in list(enumerate(order))[len(restored) :]:
        for layer in replica.layers.values():
            layer.select(subspace, rank)
        factors = [layer.factor for layer in replica.layers.values() if layer.factor is not None]
        adam = torch.optim.Adam(factors, lr=training.learning_rate)
        for step in range(interval * training.interval_steps, (interval + 1) * training.interval_steps):
            loss = _one_step(training, adam, whole, step, steps, run_step)
            total += loss
            progress(step + 1, steps, loss)
        for layer in replica.layers.values():
            layer.absorb()
            # The factor and its moments go before the next ones come.
            layer.select(None)
        del adam, factors
        finished.save(Progressed(key=key, interval=interval, subspace=subspace, rank=rank, loss=total), replica, whole)
    return Round(tuple(sorted(set(order))), largest, total / steps, len(restored))


def _one_step(
    training: Training, adam: torch.optim.Adam, whole: torch.optim.Adam | None, step: int, steps: int, run_step: StepFunction
) -> float:
    factor = learning_rate_factor(step, steps)
    optimisers = [(adam, training.learning_rate)] + ([(whole, training.tensor_learning_rate)] if whole else [])
    for optimiser, learning_rate in optimisers:
        optimiser.param_groups[0]["lr"] = learning_rate * factor
        optimiser.zero_grad(set_to_none=True)
    loss = run_step(step)
    if not math.isfinite(loss):
        raise WorkerError(f"the loss is {loss} at step {step + 1}", remedy="lower method.learning_rate")
    for optimiser, _ in optimisers:
        optimiser.step()
    return loss


def update_records(replica: Replica, plan: Plan, rank: int, used: tuple[int, ...]) -> Iterator[Record]:
    """The round's accumulators and full tensors as quantised records, one at a time.

    Raises:
        UpdateRefused: Training diverged: a value is not finite or too large.
    """
    for name, layer in replica.layers.items():
        parts = layer.accumulators()
        values = torch.cat([parts[k][:, :rank] for k in used], dim=1).cpu().numpy()
        yield Record(name, quantise_rows(values, plan.training.bits, place=name), plan.training.bits)
    start = replica.start_values()
    specs = {spec.name: spec for spec in plan.model_schema.tensors}
    for name, parameter in replica.tensors.items():
        change = (parameter.detach().cpu().numpy() - start[name]).astype(np.float32).reshape(specs[name].matrix)
        yield Record(name, quantise_rows(change, TENSOR_BITS, place=name), TENSOR_BITS)
