# SPDX-License-Identifier: Apache-2.0
"""Measuring a replica on held-out data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edge_client.worker.metrics import accuracy, f1, matthews, pearson, spearman
from edge_client.worker.tasks import Encoded, outputs, summed_loss
from fedcore.job import TaskSection

__all__ = ["evaluate"]

_BATCH = 64


def evaluate(
    model: Any, encoded: Sequence[Encoded], task: TaskSection, pad_id: int, torch_device: torch.device
) -> tuple[float, float, dict[str, float]]:
    """Accuracy, mean loss, and the task's other metrics.

    `accuracy` is Spearman's correlation for regression, and the share of tokens foreseen is not measured for causal-lm: there it is
    exp(-loss), the mean probability of the right token.
    """
    # Texts of like length together: less padding.
    ordered = sorted(encoded, key=lambda e: len(e.ids))
    total, weight, scores = 0.0, 0, []
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(ordered), _BATCH):
            batch = ordered[start : start + _BATCH]
            total += float(summed_loss(model, batch, task, pad_id, torch_device))
            weight += sum(e.weight for e in batch)
            if task.kind != "causal-lm":
                scores.append(outputs(model, batch, pad_id, torch_device).float().cpu().numpy())
    model.train()
    loss = total / weight
    if task.kind == "causal-lm":
        return math.exp(-loss), loss, {"perplexity": math.exp(min(loss, 700.0))}
    table = np.concatenate(scores)
    targets = [e.target for e in ordered if e.target is not None]
    if task.kind == "regression":
        predicted, wanted = table[:, 0].astype(np.float64), np.array(targets, np.float64)
        rank = spearman(predicted, wanted)
        return rank, loss, {"spearman": rank, "pearson": pearson(predicted, wanted)}
    found, labels = table.argmax(axis=1), np.array(targets, np.int64)
    metrics = {"matthews": matthews(found, labels)}
    if len(task.labels) == 2:
        metrics["f1"] = f1(found, labels)
    return accuracy(found, labels), loss, metrics
