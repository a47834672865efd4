# SPDX-License-Identifier: Apache-2.0
"""Two tiny measured steps: what this process takes beyond the tensors that were foreseen."""

from __future__ import annotations

import msgspec
import torch

from edge_client.worker.data.tasks import summed_loss, worker_task
from edge_client.worker.methods.interface import Gathering, trained_by
from edge_client.worker.train.highwater import begin_peak, peak_bytes, status_bytes
from edge_client.worker.train.replica import Replica
from fedcore.round.plan import Plan
from fedcore.worker.messages import Measured

__all__ = ["calibrate"]


def calibrate(
    replica: Replica, plan: Plan, length: int, pad_id: int, torch_device: torch.device
) -> tuple[Measured, ...]:
    """Forward and backward over one and over two short examples, with a subspace selected; nothing is learned.

    Returns:
        The readings, or none where the kernel does not give them.
    """
    types = (0,) * length if replica.model.takes_types else None
    example = worker_task(plan.task).sample((1,) * length, types)
    found = []
    # Memory is planned for what trains, also where a pass without gradients comes first.
    half, training = trained_by(replica.half), plan.training.learns
    half.open(msgspec.structs.replace(plan, training=training), "", training.rank)
    half.begin(0)
    # The first pass also warms up what libraries allocate once.
    for size in (1, 1, 2):
        static = status_bytes("VmRSS")
        begin_peak()
        if isinstance(half, Gathering):
            half.gather([example] * size, plan.task, pad_id, torch_device, first=True)
        else:
            loss = summed_loss(replica.model, [example] * size, plan.task, pad_id, torch_device)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            del loss
        peak = peak_bytes()
        replica.model.module.zero_grad(set_to_none=True)
        if static is not None and peak is not None:
            found.append(Measured(micro_batch_size=size, length=length, static_bytes=static, peak_bytes=peak))
    replica.restore()
    return tuple(found[1:])
