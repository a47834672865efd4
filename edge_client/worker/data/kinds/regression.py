# SPDX-License-Identifier: Apache-2.0
"""A score for each text: squared error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edge_client.worker.data.tasks import Encoded, HeadTask, Scores
from fedcore.numbers.metrics import pearson, spearman

__all__ = ["RegressionAtWork"]


class RegressionAtWork(HeadTask):
    """What is called accuracy is Spearman's correlation; beside it Pearson's."""

    sample_target = 0.5

    def loss(self, said: Tensor, batch: Sequence[Encoded], reduction: Literal["sum", "none"]) -> Tensor:
        """Squared error."""
        wanted = torch.tensor([e.target for e in batch], dtype=torch.float32, device=said.device)
        return F.mse_loss(said.squeeze(-1), wanted, reduction=reduction)

    def targets(self, batch: Sequence[Encoded]) -> Tensor:
        """The scores."""
        return torch.tensor([[e.target] for e in batch], dtype=torch.float64)

    def predictions(self, scores: Scores, encoded: Sequence[Encoded]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scores, float64 (rows,)."""
        return scores.outputs[:, 0].astype(np.float64), np.array([e.target for e in encoded], np.float64)

    def measures(self, scores: Scores, encoded: Sequence[Encoded], loss: float) -> tuple[float, dict[str, float]]:
        """Of scores."""
        predicted, wanted = self.predictions(scores, encoded)
        rank = spearman(predicted, wanted)
        return rank, {"spearman": rank, "pearson": pearson(predicted, wanted)}
