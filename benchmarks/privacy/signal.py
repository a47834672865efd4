# SPDX-License-Identifier: Apache-2.0
"""What examples' gradients have in common: the signal that noise has to leave standing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edge_client.worker.data.tasks import Encoded, HeadTask, worker_task
from edge_client.worker.methods.perexample import ByExample
from edge_client.worker.train.private import PrivateSteps
from edge_client.worker.train.replica import Replica
from fedcore.round.plan import Plan

__all__ = ["gradients"]

_CPU: Final = torch.device("cpu")
_NO_NOISE: Final = 1e-9
_PART: Final = 30


def gradients(
    replica: Replica, plan: Plan, *halves: Sequence[Encoded]
) -> tuple[list[dict[str, NDArray[np.float64]]], dict[str, NDArray[np.float64]]]:
    """Mean clipped gradients of each half by name, and norms of examples, of layers and the head.

    Args:
        replica: Where the plan's round starts.
        plan: One that hides examples.
        halves: Rows.
    """
    privacy, task = plan.training.privacy, worker_task(plan.task)
    assert privacy is not None and isinstance(task, HeadTask)
    replica.become("r", "n")
    replica.open(plan)
    half = replica.half
    half.open(plan, "n", 1)
    half.begin(0)
    assert isinstance(half, ByExample) and half.examples is not None
    quiet = msgspec.structs.replace(privacy, noise_multiplier=_NO_NOISE)
    means, norms = [], {"layers": list[float](), "head": list[float]()}
    for rows in halves:
        steps = PrivateSteps(replica.model, half, task, quiet, len(rows), np.random.default_rng(0))
        steps.begin()
        for at in range(0, len(rows), _PART):
            steps.micro_batch(rows[at : at + _PART], replica.model.pad_id, _CPU)
            own = half.examples.found()
            for part in norms:
                some = [value for name, value in own.items() if (name in replica.layers) == (part == "layers")]
                norms[part] += torch.stack([one.flatten(1).square().sum(dim=1) for one in some]).sum(0).sqrt().tolist()
        steps.finish()
        means.append({name: _numbers(value.grad) for name, value in half.examples.parameters()})
    return means, {part: np.array(value) for part, value in norms.items()}


def _numbers(gradient: torch.Tensor | None) -> NDArray[np.float64]:
    assert gradient is not None
    return np.asarray(gradient.detach().double().numpy())
