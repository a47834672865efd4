# SPDX-License-Identifier: Apache-2.0
"""Numbers that say how good a model is; pure functions over NumPy arrays.

Each takes what the model said of every example and what is right (`WorkerTask.predictions` says what these are of a
task). A job names those that it wants beside the task's own in `[evaluation] metrics`, registered ones by name and
others as `package.module:function`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcore.registry import register_metric

__all__ = ["Floats", "Integers", "accuracy", "f1", "matthews", "pearson", "spearman"]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@register_metric("accuracy")
def accuracy(predicted: Integers, wanted: Integers) -> float:
    """Share of equal entries.

    Example:
        >>> accuracy(np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]))
        0.75
    """
    return float(np.mean(predicted == wanted))


@register_metric("f1")
def f1(predicted: Integers, wanted: Integers, label: int = 1) -> float:
    """F1 of one label; 0 where it is neither wanted nor predicted."""
    both = float(np.sum((predicted == label) & (wanted == label)))
    total = float(np.sum(predicted == label) + np.sum(wanted == label))
    return 2 * both / total if total else 0.0


@register_metric("matthews")
def matthews(predicted: Integers, wanted: Integers) -> float:
    """Matthews' correlation, also for more than two labels; 0 where one side is constant."""
    size = int(max(predicted.max(initial=0), wanted.max(initial=0))) + 1
    table = np.zeros((size, size))
    np.add.at(table, (wanted, predicted), 1)
    total, right = table.sum(), np.trace(table)
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    spread = np.sqrt((total**2 - (columns**2).sum()) * (total**2 - (rows**2).sum()))
    return float((right * total - (rows * columns).sum()) / spread) if spread else 0.0


@register_metric("pearson")
def pearson(predicted: Floats, wanted: Floats) -> float:
    """Linear correlation; 0 where one side is constant."""
    a, b = predicted - predicted.mean(), wanted - wanted.mean()
    spread = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / spread) if spread else 0.0


@register_metric("spearman")
def spearman(predicted: Floats, wanted: Floats) -> float:
    """Correlation of ranks; equal values share their mean rank."""
    return pearson(_ranks(predicted), _ranks(wanted))


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Floats = last - (counts - 1) / 2
    return means[inverse]
