# SPDX-License-Identifier: Apache-2.0
"""CMA-ES against the package `cma`, of equal samples, and on functions whose minimum is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcore.subspaces.evolution import Constants, Search, normal_draws

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "evolution.json").read_text())


@pytest.mark.parametrize("golden", GOLDEN, ids=["half", "all parents"])
def test_generations_are_those_of_the_package_cma(golden: dict[str, Any]) -> None:
    n = golden["dimensions"]
    constants = Constants.of(n, golden["population"], all_parents=golden["all_parents"])
    assert np.allclose(constants.weights, golden["weights"], atol=1e-12)
    for name in ("mueff", "cumulation", "rank_one", "rank_mu"):
        assert getattr(constants, name) == pytest.approx(golden[name], rel=1e-12)
    # How fast the step size follows is the tutorial's here, and a little newer there.
    assert constants.path_rate == pytest.approx(golden["path_rate"], rel=0.25)
    constants = replace(constants, path_rate=golden["path_rate"], damping=golden["damping"])
    search = Search.begin(np.full(n, 0.5), 0.7, np.eye(n))
    for step in golden["steps"]:
        search = search.tell(np.array(step["candidates"]), np.array(step["values"]), constants)
        assert np.allclose(search.mean, step["mean"], atol=1e-14)
        # The usual length of a normal vector is approximated otherwise there, by 5e-4 at four dimensions.
        assert search.sigma == pytest.approx(step["sigma"], rel=2e-3)
        assert np.allclose(search.covariance, step["covariance"], atol=5e-3)


@pytest.mark.parametrize("condition", [1.0, 1e3])
def test_a_minimum_is_found(condition: float) -> None:
    n, constants = 6, Constants.of(6, 10)
    search, scales = Search.begin(np.full(n, 3.0), 1.0, np.eye(n)), condition ** (np.arange(n) / (n - 1))
    for generation in range(220):
        candidates = search.ask(normal_draws(10, n, "test", generation))
        search = search.tell(candidates, (scales * candidates**2).sum(axis=1), constants)
    assert np.abs(search.mean).max() < 1e-5 and search.generation == 220
    assert np.allclose(search.covariance, search.covariance.T) and search.sigma < 1e-3


def test_draws_are_pinned_and_of_variance_one() -> None:
    draws = normal_draws(200, 300, 7, 1, "a", 0)
    assert abs(draws.mean()) < 0.01 and abs(draws.std() - 1) < 0.01
    assert np.rint(draws[0, :6] * 1000).tolist() == [-751.0, -888.0, -524.0, 410.0, -319.0, 2891.0]
    assert np.array_equal(normal_draws(3, 300, 7, 1, "a", 0), draws[:3])


def test_a_root_is_a_root() -> None:
    chance = np.random.default_rng(0).normal(size=(5, 5))
    search = Search.begin(np.zeros(5), 1.0, chance @ chance.T)
    root, inverse = search.roots
    assert (
        np.allclose(root @ root, search.covariance)
        and np.allclose(root @ inverse, np.eye(5))
        and (root == root.T).any()
    )
