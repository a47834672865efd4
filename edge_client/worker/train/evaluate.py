# SPDX-License-Identifier: Apache-2.0
"""Measuring a replica on held-out data."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
import torch

from edge_client.worker.data.sources import function_by_name
from edge_client.worker.data.tasks import Encoded, Scores, worker_task
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.train.answered import Texts
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import DataError
from fedcore.registry import METRICS, metric_kind
from fedcore.round.measurement import ACCURACY, LOSS, Sum, summed

__all__ = [
    "Metric",
    "Metrics",
    "Scores",
    "batch_of_tokens",
    "compares_texts",
    "evaluate",
    "measures",
    "metrics_by_name",
    "node_metrics",
    "scores_of",
    "sums_of",
]

_BATCH = 64


Metric = Callable[[Any, Any], Any]
"""What the model says and what is right, to a number, or to one of each example (`fedcore.registry.MetricKind`)."""
Metrics = Mapping[str, Metric]
_KEY: Final = "evaluation.metrics"
_NO_TEXTS: Final[Texts] = ([], [])


def evaluate(
    model: BuiltModel,
    encoded: Sequence[Encoded],
    task: TaskSection,
    pad_id: int,
    torch_device: torch.device,
    metrics: Metrics = types.MappingProxyType({}),
    texts: Callable[[], Texts] = lambda: _NO_TEXTS,
) -> tuple[float, float, dict[str, float]]:
    """Accuracy, mean loss, and other metrics: the task's own, then those that were asked for.

    `accuracy` is Spearman's correlation for regression, and exp(-loss), the mean probability of the right token, for
    causal-lm.

    Args:
        model: With the state that is measured.
        encoded: Examples.
        task: Of the plan.
        pad_id: Token that pads.
        torch_device: Where to compute.
        metrics: Beside the task's own.
        texts: Makes the answers and gives them with the right ones; called once, where a metric compares texts.

    Raises:
        DataError: A metric that was asked for fails, or gives no finite number.
    """
    scores = scores_of(model, encoded, task, pad_id, torch_device)
    accuracy, loss, found = measures(scores, encoded, task)
    if metrics:
        compared = _Compared(scores, encoded, task, texts)
        found |= {name: compared.value(name, metric) for name, metric in metrics.items()}
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


def node_metrics(names: Sequence[str], task: TaskSection) -> dict[str, Metric | None]:
    """What a plan asks nodes to measure; None for what the task measures by itself.

    Raises:
        ConfigError: No such metric on this node.
    """
    own = task_of(task).metrics()
    found = metrics_by_name([name for name in names if name not in own])
    return {name: found.get(name) for name in names}


def compares_texts(metrics: Iterable[Metric | None]) -> bool:
    """Whether one of them needs answers."""
    return any(metric is not None and metric_kind(metric).compares == "texts" for metric in metrics)


class _Compared:
    """What metrics compare of one measurement: numbers, and texts that are made when the first metric wants them."""

    def __init__(
        self, scores: Scores, encoded: Sequence[Encoded], task: TaskSection, texts: Callable[[], Texts]
    ) -> None:
        self._scores, self._encoded, self._task = scores, encoded, task
        self._texts = cache(texts)

    def value(self, name: str, metric: Metric) -> float:
        """A metric's number; the mean over examples is that of the exact sum.

        Raises:
            DataError: It fails, or gives no finite number.
        """
        found = self._found(name, metric)
        return found.mean if isinstance(found, Sum) else found

    def sum(self, name: str, metric: Metric) -> Sum:
        """What a node says of it: a number that is no mean counts as this node's own value for each of its rows.

        Raises:
            DataError: As `value`.
        """
        found = self._found(name, metric)
        return found if isinstance(found, Sum) else _whole(found, len(self._sides(metric)[1]))

    def _sides(self, metric: Metric) -> tuple[Any, Any]:
        if metric_kind(metric).compares == "texts":
            return self._texts()
        return worker_task(self._task).predictions(self._scores, self._encoded)

    def _found(self, name: str, metric: Metric) -> Sum | float:
        said, right = self._sides(metric)
        try:
            found = np.asarray(metric(said, right), np.float64)
        except Exception as error:
            # A foreign function: whatever it raises, the user must learn which.
            raise DataError(f"metric {name!r} failed: {type(error).__name__}: {error}", place=_KEY) from error
        shape = (len(right),) if metric_kind(metric).each else ()
        if found.shape != shape:
            wanted = f"one number of each of {len(right)} examples" if shape else "one number"
            raise DataError(f"metric {name!r} gives numbers {found.shape}, not {wanted}", place=_KEY)
        if not np.isfinite(found).all():
            wrong = found if not shape else found[~np.isfinite(found)][0]
            raise DataError(f"metric {name!r} gives {wrong}", place=_KEY, remedy="have it give a finite number")
        return summed(found.tolist(), len(right)) if shape else float(found)


def batch_of_tokens(most_tokens: int) -> Callable[[int], int]:
    """Sizes of batches that have so many tokens at most, by the length of their longest example; one at the least.

    Example:
        >>> batch_of_tokens(100)(30), batch_of_tokens(100)(200)
        (3, 1)
    """
    return lambda length: max(1, min(_BATCH, most_tokens // max(1, length)))


def scores_of(
    model: BuiltModel,
    encoded: Sequence[Encoded],
    task: TaskSection,
    pad_id: int,
    torch_device: torch.device,
    batch_size: Callable[[int], int] = lambda length: _BATCH,
    wanted: Callable[[], object] = lambda: None,
) -> Scores:
    """What a model says of each example.

    Args:
        model: With the state that is measured.
        encoded: Examples.
        task: Of the plan.
        pad_id: Token that pads.
        torch_device: Where to compute.
        batch_size: Of a batch whose longest example has so many tokens.
        wanted: Called before each batch; it raises where nobody waits any more.
    """
    # Texts of like length together: less padding.
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].ids))
    at_work, losses, found = worker_task(task), np.empty(len(encoded), np.float64), []
    model.module.eval()
    with torch.inference_mode():
        for places in _batches(order, encoded, batch_size):
            wanted()
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


def _batches(
    order: Sequence[int], encoded: Sequence[Encoded], batch_size: Callable[[int], int]
) -> Iterator[Sequence[int]]:
    """`order`, the shortest first, in batches."""
    start = 0
    while start < len(order):
        # Of what would be in it: a larger batch has longer examples, so its own size is smaller.
        size = 1
        while start + size < len(order) and size + 1 <= batch_size(len(encoded[order[start + size]].ids)):
            size += 1
        yield order[start : start + size]
        start += size


def measures(scores: Scores, encoded: Sequence[Encoded], task: TaskSection) -> tuple[float, float, dict[str, float]]:
    """What `evaluate` gives, of scores that are there already."""
    loss = float(scores.losses.sum() / scores.weights.sum())
    accuracy, metrics = worker_task(task).measures(scores, encoded, loss)
    return accuracy, loss, metrics


def sums_of(
    scores: Scores,
    encoded: Sequence[Encoded],
    task: TaskSection,
    metrics: Mapping[str, Metric | None],
    texts: Callable[[], Texts] = lambda: _NO_TEXTS,
) -> dict[str, Sum]:
    """What a node says of its held-out examples: loss, accuracy, and what the plan asks beside.

    A number that is a mean over examples travels as its sum. One that is not (a correlation, F1) counts as this node's
    own value for each of its examples.

    Args:
        scores: What the model says of the examples.
        encoded: The examples.
        task: Of the plan.
        metrics: By name; None for those that the task measures by itself.
        texts: Makes the answers and gives them with the right ones; called once, where a metric compares texts.

    Raises:
        DataError: A metric fails, or gives no finite number.
    """
    at_work = worker_task(task)
    count = int(scores.weights.sum())
    losses = summed(scores.losses.tolist(), count)
    accuracy, own = at_work.measures(scores, encoded, losses.mean)
    means, headline = at_work.means(scores, encoded), at_work.headline(scores, encoded)
    if headline is not None:
        means = {**means, ACCURACY: headline}
    exact = {name: summed(values.tolist(), int(counts.sum())) for name, (values, counts) in means.items()}
    compared = _Compared(scores, encoded, task, texts)
    sums = {LOSS: losses, ACCURACY: exact.get(ACCURACY) or _whole(accuracy, len(encoded))}
    for name, metric in metrics.items():
        if metric is not None:
            sums[name] = compared.sum(name, metric)
        else:
            sums[name] = exact.get(name) or _whole(own[name], len(encoded))
    return sums


def _whole(value: float, count: int) -> Sum:
    return Sum(summed([value], 1).total * count, count)
