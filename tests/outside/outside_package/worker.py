# SPDX-License-Identifier: Apache-2.0
"""The task at work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edge_client.worker.data.tasks import Encoded, HeadTask, Scores


class ManyLabelsAtWork(HeadTask):
    """Each label is there or not: binary cross-entropy."""

    sample_target = (0.0, 1.0)

    def loss(self, said: Tensor, batch: Sequence[Encoded], reduction: Literal["sum", "none"]) -> Tensor:
        """Summed over labels."""
        wanted = torch.tensor([e.target for e in batch], dtype=torch.float32, device=said.device)
        losses = F.binary_cross_entropy_with_logits(said, wanted, reduction="none").sum(dim=1)
        return losses.sum() if reduction == "sum" else losses

    def predictions(self, scores: Scores, encoded: Sequence[Encoded]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Whether each label is there, int64 (rows, labels)."""
        return (scores.outputs > 0).astype(np.int64), np.array([e.target for e in encoded], np.int64)

    def measures(self, scores: Scores, encoded: Sequence[Encoded], loss: float) -> tuple[float, dict[str, float]]:
        """The share of right labels."""
        found, wanted = self.predictions(scores, encoded)
        return float((found == wanted).mean()), {}
