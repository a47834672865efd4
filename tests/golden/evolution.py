# SPDX-License-Identifier: Apache-2.0
"""Generations of the package `cma` (Hansen's own), which `tests/fedcore/subspaces/test_evolution.py` compares ours with.

`pip install cma==4.5.0 && python -m tests.golden.evolution` writes `evolution.json` beside this file anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

GENERATIONS = 4


def search(dimensions: int, population: int, parents: int | None, condition: float) -> dict[str, Any]:
    """Candidates, values, and what became of mean, step size and covariance."""
    import cma  # type: ignore[import-not-found]

    options = {"seed": 1, "popsize": population, "verbose": -9} | ({"CMA_mu": parents} if parents else {})
    strategy = cma.CMAEvolutionStrategy(dimensions * [0.5], 0.7, options)
    scales = condition ** (np.arange(dimensions) / (dimensions - 1))
    steps = []
    for _ in range(GENERATIONS):
        candidates = np.array(strategy.ask())
        values = (scales * candidates**2).sum(axis=1)
        strategy.tell(candidates, values)
        steps.append(
            {
                "candidates": candidates.tolist(),
                "values": values.tolist(),
                "mean": strategy.mean.tolist(),
                "sigma": strategy.sigma,
                "covariance": strategy.C.tolist(),
            }
        )
    adaptation, matrix = strategy.adapt_sigma, strategy.sm.parameters()
    return {
        "dimensions": dimensions,
        "population": population,
        "all_parents": parents is not None,
        "weights": list(strategy.sp.weights)[:population],
        "mueff": strategy.sp.weights.mueff,
        "path_rate": adaptation.cs,
        "damping": adaptation.damps,
        "cumulation": strategy.sp.cc,
        "rank_one": matrix["c1"],
        "rank_mu": matrix["cmu"],
        "steps": steps,
    }


if __name__ == "__main__":
    found = [search(4, 8, None, 1.0), search(4, 6, 6, 100.0)]
    Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n")
