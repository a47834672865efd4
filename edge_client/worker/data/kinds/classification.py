# SPDX-License-Identifier: Apache-2.0
"""One label of a set, for a text or a pair of texts: cross-entropy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edge_client.worker.data.tasks import Encoded, HeadTask, Scores
from fedcore.numbers.metrics import accuracy, f1, matthews

__all__ = ["ClassificationAtWork"]


class ClassificationAtWork(HeadTask):
    """Accuracy is the share of right labels; beside it Matthews' correlation, and F1 where there are two labels."""

    sample_target = 0

    def loss(self, said: Tensor, batch: Sequence[Encoded], reduction: Literal["sum", "none"]) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(said, torch.tensor([e.target for e in batch], device=said.device), reduction=reduction)

    def targets(self, batch: Sequence[Encoded]) -> Tensor:
        """Zeros, and a one at the label's place."""
        labels = torch.tensor([e.target for e in batch])
        return F.one_hot(labels, len(self.section.labels)).to(torch.float64)

    def predictions(self, scores: Scores, encoded: Sequence[Encoded]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Labels' places in the set, int64 (rows,)."""
        return scores.outputs.argmax(axis=1), np.array([e.target for e in encoded], np.int64)

    def headline(self, scores: Scores, encoded: Sequence[Encoded]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Right or not."""
        found, labels = self.predictions(scores, encoded)
        return (found == labels).astype(np.float64), np.ones(len(labels), np.int64)

    def trivial(self, encoded: Sequence[Encoded]) -> float:
        """The share of the commonest label."""
        return max(Counter(one.target for one in encoded).values()) / len(encoded)

    def measures(self, scores: Scores, encoded: Sequence[Encoded], loss: float) -> tuple[float, dict[str, float]]:
        """Of labels."""
        found, labels = self.predictions(scores, encoded)
        metrics = {"matthews": matthews(found, labels)}
        if len(self.section.labels) == 2:
            metrics["f1"] = f1(found, labels)
        return accuracy(found, labels), metrics
