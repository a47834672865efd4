# SPDX-License-Identifier: Apache-2.0
"""Covariance matrix adaptation (CMA-ES): a search that looks at values of a function alone, as Hansen's tutorial has it
(arXiv 1604.00772), with negative weights.

A generation is `ask`, the function's values, `tell`. All state is in `Search`, which is replaced, never changed. Random
numbers are the caller's, so that a search that goes on after a kill finds the same.

Decompositions and products of matrices are float64 as the machine has them: two machines need not agree in the last
bit. Who must agree takes what one of them found."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedcore.subspaces.rows.gaussian import GAUSSIAN_SQUARES, QUANTILES

__all__ = ["Constants", "Search", "normal_draws"]

_Floats = NDArray[np.float64]


def normal_draws(count: int, dimensions: int, *words: object) -> _Floats:
    """Normal numbers (count, dimensions) in 256 steps, of variance one: the quantiles that bytes of SHAKE-128 choose.

    Args:
        count: Rows.
        dimensions: Columns.
        words: What the stream is of, such as seed, round and node.

    Example:
        >>> draws = normal_draws(100, 50, "example", 1)
        >>> draws.shape, bool(abs(draws.std() - 1) < 0.05)
        ((100, 50), True)
    """
    shake = hashlib.shake_128("/".join(["fedkrso normal 1", *map(str, words)]).encode())
    table = np.array(QUANTILES, np.float64) / math.sqrt(GAUSSIAN_SQUARES / 256)
    return np.asarray(table[np.frombuffer(shake.digest(count * dimensions), np.uint8)].reshape(count, dimensions))


@dataclass(frozen=True)
class Constants:
    """What a population's size and the dimensions decide (the tutorial's table 1).

    Attributes:
        weights: Of the population from the best to the worst; those above zero add up to one.
        mueff: How many equal weights those above zero are worth.
        path_rate: c_sigma, of the path that decides the step size.
        damping: d_sigma.
        cumulation: c_c, of the path that the covariance follows.
        rank_one: c_1.
        rank_mu: c_mu.
    """

    weights: _Floats
    mueff: float
    path_rate: float
    damping: float
    cumulation: float
    rank_one: float
    rank_mu: float

    @classmethod
    def of(cls, dimensions: int, population: int, *, all_parents: bool = False) -> Constants:
        """By the tutorial.

        Args:
            dimensions: n.
            population: Candidates of a generation.
            all_parents: The mean is of all candidates, the better the more, instead of the better half.

        Example:
            >>> Constants.of(10, 4).weights.round(2).tolist()
            [0.8, 0.2, -0.55, -1.42]
        """
        n, whole = dimensions, 2 * population if all_parents else population
        raw = math.log((whole + 1) / 2) - np.log(np.arange(1, population + 1))
        above, below = raw[raw > 0], raw[raw < 0]
        mueff = float(above.sum() ** 2 / np.square(above).sum())
        rank_one = 2 / ((n + 1.3) ** 2 + mueff)
        rank_mu = min(1 - rank_one, 2 * (0.25 + mueff + 1 / mueff - 2) / ((n + 2) ** 2 + mueff))
        weights = raw / above.sum()
        if len(below):
            worth = float(below.sum() ** 2 / np.square(below).sum())
            most = min(1 + rank_one / rank_mu, 1 + 2 * worth / (mueff + 2), (1 - rank_one - rank_mu) / (n * rank_mu))
            weights[raw < 0] = below / -below.sum() * most
        path_rate = (mueff + 2) / (n + mueff + 5)
        damping = 1 + 2 * max(0.0, math.sqrt((mueff - 1) / (n + 1)) - 1) + path_rate
        cumulation = (4 + mueff / n) / (n + 4 + 2 * mueff / n)
        return cls(weights, mueff, path_rate, damping, cumulation, rank_one, rank_mu)


@dataclass(frozen=True)
class Search:
    """Where a search stands.

    Attributes:
        mean: m (n,).
        sigma: Step size.
        covariance: C (n, n), symmetric.
        step_path: p_sigma (n,).
        covariance_path: p_c (n,).
        generation: Generations so far.
    """

    mean: _Floats
    sigma: float
    covariance: _Floats
    step_path: _Floats
    covariance_path: _Floats
    generation: int = 0

    @classmethod
    def begin(cls, mean: _Floats, sigma: float, covariance: _Floats) -> Search:
        """With no path behind it."""
        zero = np.zeros_like(mean)
        return cls(mean, sigma, covariance, zero, zero)

    @functools.cached_property
    def roots(self) -> tuple[_Floats, _Floats]:
        """The symmetric root of C, and its inverse."""
        values, vectors = np.linalg.eigh(self.covariance)
        lengths = np.sqrt(np.maximum(values, 1e-20))
        return (vectors * lengths) @ vectors.T, (vectors / lengths) @ vectors.T

    def ask(self, draws: _Floats) -> _Floats:
        """Candidates (population, n) of normal numbers of the same shape."""
        return np.asarray(self.mean + self.sigma * (draws @ self.roots[0]))

    def tell(self, candidates: _Floats, values: _Floats, constants: Constants) -> Search:
        """The search after a generation; the smaller a value, the better.

        Args:
            candidates: (population, n); they need not be those that were asked for.
            values: Of the function, (population,).
            constants: Of the population's size.
        """
        n, w, c = len(self.mean), constants.weights, constants
        inverse = self.roots[1]
        steps = (candidates[np.argsort(values, kind="stable")] - self.mean) / self.sigma
        step = np.maximum(w, 0) @ steps
        whitened = steps @ inverse
        path = (1 - c.path_rate) * self.step_path + math.sqrt(c.path_rate * (2 - c.path_rate) * c.mueff) * (
            inverse @ step
        )
        usual = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
        length = float(np.linalg.norm(path))
        known = math.sqrt(1 - (1 - c.path_rate) ** (2 * (self.generation + 1)))
        # A path that has grown long says that the step size is too small: the covariance does not follow it then.
        follows = length / known < (1.4 + 2 / (n + 1)) * usual
        gain = math.sqrt(c.cumulation * (2 - c.cumulation) * c.mueff) if follows else 0.0
        cumulated = (1 - c.cumulation) * self.covariance_path + gain * step
        # What a negative weight takes away is no more than what is there.
        scale = np.where(w < 0, n / np.maximum(np.square(whitened).sum(axis=1), 1e-20), 1.0)
        lost = 0.0 if follows else c.rank_one * c.cumulation * (2 - c.cumulation)
        covariance = (
            (1 + lost - c.rank_one - c.rank_mu * w.sum()) * self.covariance
            + c.rank_one * np.outer(cumulated, cumulated)
            + c.rank_mu * (steps.T * (w * scale)) @ steps
        )
        return replace(
            self,
            mean=self.mean + self.sigma * step,
            sigma=self.sigma * math.exp(min(1.0, c.path_rate / c.damping * (length / usual - 1))),
            covariance=(covariance + covariance.T) / 2,
            step_path=path,
            covariance_path=cumulated,
            generation=self.generation + 1,
        )
