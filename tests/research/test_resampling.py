# SPDX-License-Identifier: Apache-2.0
"""Metrics of resamples against the plain metrics of repeated rows, and the intervals that come of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.numbers.metrics import accuracy, f1, matthews, spearman
from research.reports.resampling import difference, metric_values, row_weights
from research.runs.predictions import Predictions

KIND = "text-classification"


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.integers(2, 3))
def test_a_weighted_metric_is_the_metric_of_repeated_rows(rows: int, seed: int, labels: int) -> None:
    chance = np.random.default_rng(seed)
    said, wanted = (chance.integers(labels, size=rows).astype(np.uint8) for _ in range(2))
    scores, marks = (chance.integers(5, size=rows).astype(np.float32) for _ in range(2))
    losses, tokens = chance.random(rows).astype(np.float32), chance.integers(1, 9, size=rows).astype(np.int32)
    weights = row_weights(rows, 5, seed)
    assert np.array_equal(weights[0], np.ones(rows)) and np.array_equal(weights.sum(axis=1), np.full(6, rows))
    for resample, times in enumerate(weights.astype(int)):
        i = np.repeat(np.arange(rows), times)
        for name, plain in {"accuracy": accuracy, "matthews": matthews, "f1": f1}.items():
            found = metric_values(name, KIND, Predictions(said[None], wanted), weights)[resample]
            assert found == pytest.approx(plain(said[i].astype(np.int64), wanted[i].astype(np.int64)), abs=1e-9)
        found = metric_values("accuracy", "regression", Predictions(scores[None], marks), weights)[resample]
        assert found == pytest.approx(spearman(scores[i].astype(np.float64), marks[i].astype(np.float64)), abs=1e-9)
        found = metric_values("perplexity", "causal-lm", Predictions(losses[None], tokens), weights)[resample]
        assert found == pytest.approx(math.exp(losses[i].sum(dtype=np.float64) / tokens[i].sum()), rel=1e-6)


def test_of_several_models_the_mean_counts() -> None:
    wanted = np.array([0, 1, 0, 1], np.uint8)
    said = np.array([[0, 1, 0, 1], [1, 1, 0, 1]], np.uint8)
    assert metric_values("accuracy", KIND, Predictions(said, wanted), np.ones((1, 4)))[0] == pytest.approx(0.875)


def made(right: np.ndarray) -> Predictions:  # type: ignore[type-arg]
    wanted = np.zeros(len(right), np.uint8)
    return Predictions((~right).astype(np.uint8)[None], wanted)


def values(said: Predictions, weights: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return metric_values("accuracy", KIND, said, weights)


def test_a_paired_interval_is_that_of_the_rows_on_which_two_methods_differ() -> None:
    """Against the textbook: the variance of a mean of paired differences."""
    chance, rows = np.random.default_rng(1), 2000
    one = chance.random(rows) < 0.8
    other = np.where(chance.random(rows) < 0.05, ~one, one)
    weights = row_weights(rows, 4000, 0)
    found = difference(
        {0: values(made(one), weights)}, {0: values(made(other), weights)}, [(made(one), made(other))], 0
    )
    assert found is not None
    gaps = one.astype(float) - other.astype(float)
    half = 1.96 * gaps.std() / math.sqrt(rows)
    assert found.mean == pytest.approx(gaps.mean()) and found.by_seed == {0: pytest.approx(gaps.mean())}
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)
    # Unpaired it would be far wider: that is what pairing is for.
    assert found.high - found.low < 0.6 * 2 * 1.96 * math.sqrt(2 * 0.8 * 0.2 / rows)
    assert (found.only_first, found.only_second) == (int(np.sum(one & ~other)), int(np.sum(other & ~one)))
    assert found.sure == (found.low > 0 or found.high < 0)


def test_seeds_that_disagree_widen_the_interval() -> None:
    rows = 1000
    weights, right = row_weights(rows, 2000, 0), np.arange(rows) < 800
    worse = [made(np.arange(rows) < count) for count in (790, 780, 600)]
    first = {seed: values(made(right), weights) for seed in range(3)}
    second = {seed: values(said, weights) for seed, said in enumerate(worse)}
    wide = difference(first, second, (), 0)
    narrow = difference({0: first[0]}, {0: second[0]}, (), 0)
    assert wide is not None and narrow is not None
    assert wide.mean == pytest.approx((0.01 + 0.02 + 0.2) / 3) and wide.only_first is None
    assert wide.low < 0.02 and wide.high > 0.13
    assert narrow.high - narrow.low < 0.02


def test_equal_methods_do_not_differ_and_seeds_must_be_common() -> None:
    weights, right = row_weights(50, 200, 0), np.arange(50) < 30
    own = values(made(right), weights)
    same = difference({0: own, 1: own}, {0: own, 1: own, 2: own * 0}, (), 0)
    assert (
        same is not None
        and (same.mean, same.low, same.high, same.sure) == (0, 0, 0, False)
        and set(same.by_seed) == {0, 1}
    )
    assert difference({0: own}, {1: own}, (), 0) is None
