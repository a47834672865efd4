# SPDX-License-Identifier: Apache-2.0
"""Measuring a replica on held-out data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from edge_client.worker.data.metrics import accuracy, f1, matthews, pearson, spearman
from edge_client.worker.data.tasks import Encoded, outputs, states_and_labels
from edge_client.worker.model.loss import chunked_cross_entropy
from fedcore.config.sections import TaskSection

__all__ = ["Scores", "evaluate", "measures", "scores_of"]

_BATCH = 64


@dataclass(frozen=True)
class Scores:
    """What a model says of examples, in their order.

    Attributes:
        losses: float64 (rows,); of a causal-lm example the sum over its tokens.
        weights: What each counts in the mean loss, int64 (rows,).
        outputs: Logits, or scores of a regression, float32 (rows, labels); no columns for causal-lm.
    """

    losses: NDArray[np.float64]
    weights: NDArray[np.int64]
    outputs: NDArray[np.float32]


def evaluate(
    model: Any, encoded: Sequence[Encoded], task: TaskSection, pad_id: int, torch_device: torch.device
) -> tuple[float, float, dict[str, float]]:
    """Accuracy, mean loss, and the task's other metrics.

    `accuracy` is Spearman's correlation for regression, and the share of tokens foreseen is not measured for causal-lm:
    there it is exp(-loss), the mean probability of the right token."""
    return measures(scores_of(model, encoded, task, pad_id, torch_device), encoded, task)


def scores_of(
    model: Any, encoded: Sequence[Encoded], task: TaskSection, pad_id: int, torch_device: torch.device
) -> Scores:
    """What a model says of each example."""
    # Texts of like length together: less padding.
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].ids))
    losses, found = np.empty(len(encoded), np.float64), []
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            batch = [encoded[index] for index in places]
            if task.kind == "causal-lm":
                hidden, labels = states_and_labels(model, batch, pad_id, torch_device)
                rows = zip(hidden, labels, strict=True)
                losses[places] = [
                    float(chunked_cross_entropy(h, model.output_weight, label, count=1)) for h, label in rows
                ]
            else:
                said = outputs(model, batch, pad_id, torch_device).float()
                losses[places] = _losses(said, batch, task).cpu().numpy()
                found.append(said.cpu().numpy())
    model.train()
    table = np.zeros((len(encoded), found[0].shape[1] if found else 0), np.float32)
    if found:
        table[order] = np.concatenate(found)
    return Scores(losses, np.array([e.weight for e in encoded], np.int64), table)


def _losses(said: torch.Tensor, batch: Sequence[Encoded], task: TaskSection) -> torch.Tensor:
    targets = [e.target for e in batch]
    if task.kind == "regression":
        return F.mse_loss(
            said.squeeze(-1), torch.tensor(targets, dtype=torch.float32, device=said.device), reduction="none"
        )
    return F.cross_entropy(said, torch.tensor(targets, device=said.device), reduction="none")


def measures(scores: Scores, encoded: Sequence[Encoded], task: TaskSection) -> tuple[float, float, dict[str, float]]:
    """What `evaluate` gives, of scores that are there already."""
    loss = float(scores.losses.sum() / scores.weights.sum())
    if task.kind == "causal-lm":
        return math.exp(-loss), loss, {"perplexity": math.exp(min(loss, 700.0))}
    targets = [e.target for e in encoded if e.target is not None]
    if task.kind == "regression":
        predicted, wanted = scores.outputs[:, 0].astype(np.float64), np.array(targets, np.float64)
        rank = spearman(predicted, wanted)
        return rank, loss, {"spearman": rank, "pearson": pearson(predicted, wanted)}
    found, labels = scores.outputs.argmax(axis=1), np.array(targets, np.int64)
    metrics = {"matthews": matthews(found, labels)}
    if len(task.labels) == 2:
        metrics["f1"] = f1(found, labels)
    return accuracy(found, labels), loss, metrics
