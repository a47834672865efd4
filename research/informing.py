# SPDX-License-Identifier: Apache-2.0
"""Informed rows for a run of the experiment: made once, by the base model, from text without labels, as a coordinator
has them made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edge_client.worker.data.tasks import Encoded
from edge_client.worker.methods.principal import make_informed
from edge_client.worker.model.loading import build
from fedcore.config.sections import TaskSection
from fedcore.model.base import Base
from fedcore.round.plan import InformedObject
from fedcore.round.training import Training
from fedcore.wire.files import manifest_of

__all__ = ["informing"]


def informing(
    path: Path,
    training: Training,
    base: Base,
    task: TaskSection,
    encoded: Sequence[Encoded],
    torch_device: torch.device,
    chunk_bytes: int,
) -> InformedObject | None:
    """The informed rows that a method wants, if it does, as plans name them; made where their file is not there.

    Args:
        path: Of the file.
        training: Any round's.
        base: Of generation 0.
        task: What the model does.
        encoded: Calibration text; targets do not matter.
        torch_device: Where to compute.
        chunk_bytes: Of transfers.

    Raises:
        ModelError: A layer got no input.
    """
    count, rank = training.informed_subspaces, training.rank
    if not count:
        return None
    if not path.exists():
        part, schema = path.with_suffix(".part"), base.schema
        model: Any = build(base, task, training.run_seed, torch_device, torch.float32)
        pool = len(training.seeds)
        make_informed(part, model, schema.layers, encoded, task, torch_device, subspaces=count, rank=rank, pool=pool)
        part.replace(path)
    return InformedObject(manifest_of(path, chunk_bytes))
