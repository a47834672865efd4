# SPDX-License-Identifier: Apache-2.0
"""Heads from second moments against the same from the rows themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcore.numbers.ridge import Moments, ridge_head

Floats = NDArray[np.float64]


def moments_of(x: Floats, y: Floats) -> Moments:
    rows = np.concatenate([x, np.ones((len(x), 1)), y], axis=1)
    return Moments(rows.T @ rows / len(x), x.shape[1], len(x))


def gaussians(seed: int, rows: int, features: int, classes: int, apart: float) -> tuple[Floats, NDArray[Any], Floats]:
    """Classes of unequal sizes with one covariance and means of their own: features, labels, labels as a one among
    zeros."""
    chance = np.random.default_rng(seed)
    world = np.random.default_rng(7)
    mix = world.normal(size=(features, features)) / features**0.5
    means = world.normal(size=(classes, features)) * apart / features**0.5
    share = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    labels = chance.choice(classes, rows, p=share)
    x = means[labels] @ mix * 3 + chance.normal(size=(rows, features)) @ mix + 0.5
    return x, labels, np.eye(classes)[labels]


def log_loss(logits: Floats, labels: NDArray[Any]) -> float:
    logits = logits - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]))


@pytest.mark.parametrize("strength", [1e-4, 0.3])
def test_scores_are_those_of_a_plain_ridge_regression(strength: float) -> None:
    chance = np.random.default_rng(0)
    x, noise = chance.normal(size=(80, 12)) + 2, chance.normal(size=(80, 2))
    y = x @ chance.normal(size=(12, 2)) + noise + 5
    fitted = ridge_head(moments_of(x, y), "scores", strength=strength)
    # Rows of their own for the penalty, and a column of ones without one.
    tall = np.concatenate([np.c_[x, np.ones(80)], np.c_[np.eye(12) * (80 * strength) ** 0.5, np.zeros(12)]])
    wanted = np.linalg.lstsq(tall, np.concatenate([y, np.zeros((12, 2))]), rcond=None)[0]
    assert np.allclose(fitted.weight, wanted[:12].T, atol=1e-9) and np.allclose(fitted.bias, wanted[12], atol=1e-9)


@pytest.mark.parametrize(("rows", "noise"), [(60, 1.0), (60, 20.0), (400, 5.0)])
def test_the_strength_is_as_good_as_the_best_by_leaving_each_row_out(rows: int, noise: float) -> None:
    chance = np.random.default_rng(rows)
    x = chance.normal(size=(rows, 20)) * np.logspace(0, -2, 20)
    y = x @ chance.normal(size=(20, 1)) * 3 + noise / 10 * chance.normal(size=(rows, 1))

    def left_out(strength: float) -> float:
        """Fitted anew without each row in turn."""
        errors = []
        for row in range(rows):
            others = np.arange(rows) != row
            # The penalty of the sum stays what it is.
            fitted = ridge_head(moments_of(x[others], y[others]), "scores", strength=strength * rows / (rows - 1))
            errors.append(float(((x[row] @ fitted.weight.T + fitted.bias - y[row]) ** 2).sum()))
        return float(np.mean(errors))

    chosen = ridge_head(moments_of(x, y), "scores").strength
    least = min(left_out(float(strength)) for strength in np.logspace(-7, 1, 25))
    assert left_out(chosen) < 1.02 * least


def reference_logits(x: Floats, y: Floats, strength: float, new: Floats) -> Floats:
    """From the rows: ridge's scores, as if each row had been left out by the mean leverage, and linear discriminant
    analysis on them."""
    rows, classes = y.shape
    centred = x - x.mean(axis=0)
    inverse = np.linalg.inv(centred.T @ centred / rows + strength * np.eye(x.shape[1]))
    weight = inverse @ (centred.T @ (y - y.mean(axis=0)) / rows)
    leverage = (np.trace(centred @ inverse @ centred.T) / rows + 1) / rows
    scores = centred @ weight + y.mean(axis=0)
    out = (scores - leverage * y) / (1 - leverage)
    labels = y.argmax(axis=1)
    means = np.array([out[labels == k].mean(axis=0) for k in range(classes)])
    apart = out - means[labels]
    # One score less: all of them add up to one.
    precision = np.linalg.inv((apart.T @ apart / rows)[:-1, :-1])
    said = ((new - x.mean(axis=0)) @ weight + y.mean(axis=0))[:, :-1]
    means = means[:, :-1]
    constant = np.log(y.mean(axis=0)) - (means @ precision * means).sum(axis=1) / 2
    # No surer at a class' mean than one row in all.
    at_means = means @ precision @ means.T + constant
    nexts = np.where(np.eye(classes) == 1, -np.inf, at_means).max(axis=1)
    gap = float((np.diagonal(at_means) - nexts) @ y.mean(axis=0))
    return np.asarray(said @ precision @ means.T + constant) * min(1.0, np.log(rows) / gap)


@pytest.mark.parametrize("classes", [2, 5])
def test_logits_are_those_of_the_same_steps_on_rows(classes: int) -> None:
    x, _, y = gaussians(1, 300, 15, classes, 4.0)
    new = gaussians(2, 50, 15, classes, 4.0)[0]
    fitted = ridge_head(moments_of(x, y), "classes", strength=0.02)
    found, wanted = new @ fitted.weight.T + fitted.bias, reference_logits(x, y, 0.02, new)
    # What is the same for all classes says nothing.
    found, wanted = (one - one.mean(axis=1, keepdims=True) for one in (found, wanted))
    assert np.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("rows", "classes"), [(200, 2), (200, 4), (1500, 2), (1500, 8)])
def test_logits_are_neither_too_sure_of_themselves_nor_too_little(rows: int, classes: int) -> None:
    """Of rows that it never saw, the log-loss is that of the best factor on all logits to within a hundredth or so, also
    where there are hardly more rows than features."""
    x, _, y = gaussians(3, rows, 100, classes, 10.0)
    new, labels, _ = gaussians(4, 4000, 100, classes, 10.0)
    fitted = ridge_head(moments_of(x, y), "classes")
    logits = new @ fitted.weight.T + fitted.bias
    found = log_loss(logits, labels)
    best = min(log_loss(factor * logits, labels) for factor in np.logspace(-1, 1, 41))
    prior = log_loss(np.log(np.tile(y.mean(axis=0), (len(labels), 1))), labels)
    assert found < best + 0.02 and found < 0.9 * prior


@pytest.mark.parametrize("classes", [12, 60])
def test_many_classes_far_apart_are_not_taken_for_certain(classes: int) -> None:
    """Rows as texts are: many classes, and most of a row's distance from its class' mean along few directions. Logits
    of plain discriminant analysis are far too sure here."""
    world = np.random.default_rng(3)
    means = world.normal(size=(classes, 80))

    def rows(seed: int, count: int) -> tuple[Floats, NDArray[Any]]:
        chance = np.random.default_rng(seed)
        labels = chance.integers(classes, size=count)
        # Some rows lie far out.
        scale = 0.3 * chance.standard_gamma(0.4, size=count)[:, None] + 0.1
        return means[labels] + 4 * scale * chance.normal(size=(count, 80)), labels

    (x, labels), (new, wanted) = rows(1, 25 * classes), rows(2, 3000)
    fitted = ridge_head(moments_of(x, np.eye(classes)[labels]), "classes")
    logits = new @ fitted.weight.T + fitted.bias
    found, best = log_loss(logits, wanted), min(log_loss(by * logits, wanted) for by in np.logspace(-2, 1, 61))
    assert found < best + 0.15


def test_a_head_without_a_bias_finds_its_one_among_the_features() -> None:
    x, labels, y = gaussians(5, 2000, 20, 3, 8.0)
    # As hidden states of language models have it: one direction that hardly changes.
    x = np.c_[x, np.full(len(x), 3.0) + 0.01 * np.random.default_rng(0).normal(size=len(x))]
    with_bias, without = (ridge_head(moments_of(x, y), "classes", bias=bias) for bias in (True, False))
    assert not without.bias.any()
    losses = [log_loss(x @ one.weight.T + one.bias, labels) for one in (with_bias, without)]
    assert abs(losses[0] - losses[1]) < 0.02


def test_what_no_rows_say_is_no_error() -> None:
    x, _, y = gaussians(6, 100, 5, 3, 5.0)
    # Nobody has rows of the third class.
    fitted = ridge_head(moments_of(x[y[:, 2] == 0], y[y[:, 2] == 0]), "classes")
    assert np.isfinite(fitted.weight).all() and (x @ fitted.weight.T + fitted.bias).argmax(axis=1).max() < 2
    # Features that are all the same: the classes' shares are all there is to say.
    fitted = ridge_head(moments_of(np.ones_like(x), y), "classes")
    odds = np.exp(np.ones(5) @ fitted.weight.T + fitted.bias)
    assert np.allclose(odds / odds.sum(), y.mean(axis=0), atol=1e-6)
    # One row, and sums that no rows have.
    assert np.isfinite(ridge_head(moments_of(x[:1], y[:1]), "classes").weight).all()
    lies = np.random.default_rng(0).normal(size=(9, 9))
    fitted = ridge_head(Moments(lies + lies.T, 5, 10), "classes")
    assert np.isfinite(fitted.weight).all() and np.isfinite(fitted.bias).all()
