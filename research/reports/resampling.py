# SPDX-License-Identifier: Apache-2.0
"""Is one method better than another? Paired bootstrap over seeds and rows; pure functions over NumPy arrays.

Two methods were measured on the same rows with the same seeds, so their difference is far surer than either number. A
resample draws rows with replacement, the same for both, and seeds with replacement, the same for both; its value is the
mean difference over the drawn seeds. The interval holds the middle 95 % of these. Two or three seeds say little of how
seeds differ, and no resampling can add it: such an interval is too narrow rather than too wide, so each seed's own
difference stands beside it.

A resample is a vector of weights, how often each row was drawn, and every metric here is computed from weights, for all
resamples at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from research.runs.predictions import Predictions

__all__ = ["Difference", "Floats", "difference", "metric_values", "row_weights"]

Floats = NDArray[np.float64]
_LEVEL = 95.0


@dataclass(frozen=True)
class Difference:
    """One method's metric minus another's.

    Attributes:
        mean: Over seeds.
        low: Of the 95 % interval.
        high: Of it.
        by_seed: Each seed's own.
        only_first: Rows that only the first has right, summed over seeds; None where no row is right or wrong.
        only_second: Those that only the second has right.
    """

    mean: float
    low: float
    high: float
    by_seed: Mapping[int, float]
    only_first: int | None
    only_second: int | None

    @property
    def sure(self) -> bool:
        """Whether the interval has no zero in it."""
        return self.low > 0 or self.high < 0


def row_weights(rows: int, resamples: int, seed: int) -> Floats:
    """How often each row was drawn, (resamples + 1, rows); the first resample is the rows themselves."""
    drawn = np.random.default_rng([seed, rows]).multinomial(rows, np.full(rows, 1 / rows), size=resamples)
    return np.concatenate([np.ones((1, rows)), drawn.astype(np.float64)])


def metric_values(metric: str, kind: str, predictions: Predictions, weights: Floats) -> Floats:
    """The metric of each resample; where there are several models, the mean over them.

    Args:
        metric: As `research.data.tasks` names it.
        kind: Of the task.
        predictions: (models, rows).
        weights: (resamples, rows).
    """
    if kind == "causal-lm":
        values = [
            np.exp(np.minimum((weights @ said) / (weights @ predictions.wanted), 700.0)) for said in predictions.said
        ]
    elif kind == "regression":
        wanted = _ranks(predictions.wanted, weights)
        values = [_correlation(_ranks(said, weights), wanted, weights) for said in predictions.said]
    else:
        values = [_of_labels(metric, said, predictions.wanted, weights) for said in predictions.said]
    return np.asarray(np.mean(values, axis=0))


def _of_labels(metric: str, said: NDArray[np.uint8], wanted: NDArray[np.uint8], weights: Floats) -> Floats:
    labels = int(max(said.max(), wanted.max(), 1)) + 1
    cells = np.zeros((len(said), labels, labels))
    cells[np.arange(len(said)), wanted, said] = 1
    table = (weights @ cells.reshape(len(said), -1)).reshape(-1, labels, labels)  # (resamples, wanted, said)
    total, right = table.sum(axis=(1, 2)), np.trace(table, axis1=1, axis2=2)
    if metric == "accuracy":
        return np.asarray(right / total)
    rows, columns = table.sum(axis=2), table.sum(axis=1)
    if metric == "f1":
        return _ratio(2 * table[:, 1, 1], rows[:, 1] + columns[:, 1])
    spread = np.sqrt((total**2 - (columns**2).sum(axis=1)) * (total**2 - (rows**2).sum(axis=1)))
    return _ratio(right * total - (rows * columns).sum(axis=1), spread)


def _ranks(values: NDArray[np.float32], weights: Floats) -> Floats:
    """Each row's rank among the drawn rows; equal values share their mean rank."""
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)  # (resamples, distinct values)
    means = np.cumsum(counts, axis=1) - (counts - 1) / 2
    return np.asarray(means[:, place])


def _correlation(a: Floats, b: Floats, weights: Floats) -> Floats:
    total = weights.sum(axis=1, keepdims=True)
    a, b = (x - (x * weights).sum(axis=1, keepdims=True) / total for x in (a, b))
    spread = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    return _ratio((weights * a * b).sum(axis=1), spread)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def difference(
    first: Mapping[int, Floats],
    second: Mapping[int, Floats],
    said: Sequence[tuple[Predictions, Predictions]],
    seed: int,
) -> Difference | None:
    """What the first method is better by.

    Args:
        first: `metric_values` by run seed.
        second: Of the other method, with the same weights.
        said: Both methods' predictions for each common seed, where rows are right or wrong; else empty.
        seed: Of the draw of seeds.

    Returns:
        None without a common seed.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    gaps = np.stack(
        [first[one] - second[one] for one in seeds]
    )  # (seeds, resamples + 1); column 0 is what was measured
    resamples = gaps.shape[1] - 1
    drawn = np.random.default_rng([seed, len(seeds)]).integers(len(seeds), size=(len(seeds), resamples))
    means = np.take_along_axis(gaps[:, 1:], drawn, axis=0).mean(axis=0)
    low, high = np.percentile(means, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    only = [_discordant(a, b) for a, b in said]
    return Difference(
        mean=float(gaps[:, 0].mean()),
        low=float(low),
        high=float(high),
        by_seed={one: float(gap) for one, gap in zip(seeds, gaps[:, 0], strict=True)},
        only_first=sum(pair[0] for pair in only) if only else None,
        only_second=sum(pair[1] for pair in only) if only else None,
    )


def _discordant(a: Predictions, b: Predictions) -> tuple[int, int]:
    """Rows that only one of two has right; of several models, that most of them have right."""
    right = [np.mean(x.said == x.wanted, axis=0) > 0.5 for x in (a, b)]
    return int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))
