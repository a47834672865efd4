# SPDX-License-Identifier: Apache-2.0
"""Measuring a replica on held-out data."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from edge_client.worker.data.reading import function_by_name
from edge_client.worker.data.tasks import Encoded, Scores, worker_task
from edge_client.worker.model.built import BuiltModel
from fedcore.config.sections import TaskSection
from fedcore.errors import DataError
from fedcore.registry import METRICS

__all__ = ["Metrics", "Scores", "evaluate", "measures", "metrics_by_name", "scores_of"]

_BATCH = 64


Metrics = Mapping[str, Callable[[NDArray[Any], NDArray[Any]], float]]
_KEY: Final = "evaluation.metrics"


def evaluate(
    model: BuiltModel,
    encoded: Sequence[Encoded],
    task: TaskSection,
    pad_id: int,
    torch_device: torch.device,
    metrics: Metrics = types.MappingProxyType({}),
) -> tuple[float, float, dict[str, float]]:
    """Accuracy, mean loss, and other metrics: the task's own, then those that were asked for.

    `accuracy` is Spearman's correlation for regression, and the share of tokens foreseen is not measured for causal-lm:
    there it is exp(-loss), the mean probability of the right token.

    Raises:
        DataError: A metric that was asked for fails, or gives no finite number.
    """
    scores = scores_of(model, encoded, task, pad_id, torch_device)
    accuracy, loss, found = measures(scores, encoded, task)
    if metrics:
        compared = worker_task(task).predictions(scores, encoded)
        found |= {name: _measured(name, metric, *compared) for name, metric in metrics.items()}
    return accuracy, loss, found


def metrics_by_name(names: Sequence[str]) -> Metrics:
    """The functions that a job's `[evaluation] metrics` names; of `package.module:function` the last part is the name
    in reports.

    Raises:
        ConfigError: No such metric.
        DataError: No such module or function.
    """
    return {
        name.rpartition(":")[2]: function_by_name(name, _KEY) if ":" in name else METRICS.get(name, place=_KEY)
        for name in names
    }


def _measured(
    name: str, metric: Callable[[NDArray[Any], NDArray[Any]], float], said: NDArray[Any], wanted: NDArray[Any]
) -> float:
    try:
        value = float(metric(said, wanted))
    except Exception as error:
        # A foreign function: whatever it raises, the user must learn which.
        raise DataError(f"metric {name!r} failed: {type(error).__name__}: {error}", place=_KEY) from error
    if not math.isfinite(value):
        raise DataError(f"metric {name!r} gives {value}", place=_KEY, remedy="have it give a finite number")
    return value


def scores_of(
    model: BuiltModel, encoded: Sequence[Encoded], task: TaskSection, pad_id: int, torch_device: torch.device
) -> Scores:
    """What a model says of each example."""
    # Texts of like length together: less padding.
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].ids))
    at_work, losses, found = worker_task(task), np.empty(len(encoded), np.float64), []
    model.module.eval()
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            batch = [encoded[index] for index in places]
            found_losses, said = at_work.scores(model, batch, pad_id, torch_device)
            losses[places] = found_losses.cpu().numpy()
            if said is not None:
                found.append(said.cpu().numpy())
    model.module.train()
    table = np.zeros((len(encoded), found[0].shape[1] if found else 0), np.float32)
    if found:
        table[order] = np.concatenate(found)
    return Scores(losses, np.array([e.weight for e in encoded], np.int64), table)


def measures(scores: Scores, encoded: Sequence[Encoded], task: TaskSection) -> tuple[float, float, dict[str, float]]:
    """What `evaluate` gives, of scores that are there already."""
    loss = float(scores.losses.sum() / scores.weights.sum())
    accuracy, metrics = worker_task(task).measures(scores, encoded, loss)
    return accuracy, loss, metrics
