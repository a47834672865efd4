# SPDX-License-Identifier: Apache-2.0
"""A linear head from second moments alone: ridge regression, its strength by generalised cross-validation, and for
classes the logits that go with it.

Everything is float64 at one place, the coordinator: eigenvalues differ between machines in their last digits, so that
what follows from them is published, not computed again.

With N rows of features x and targets y, means m and covariances S, ridge finds W = (S_xx + k I)^-1 S_xy and
b = m_y - W^T m_x. One decomposition S_xx = V e V^T gives W, the residual and the degrees of freedom
df = 1 + sum e / (e + k) for every strength k, and so

    GCV(k) = residual(k) / (1 - df(k) / N)^2                      (Golub, Heath, Wahba, Technometrics 21, 1979)

Targets of classes are a one among zeros, and what ridge says of them, f, is no log-odds. It is a good coordinate
though: rows of a class lie around the class' mean of f with one covariance, as linear discriminant analysis supposes
(Hastie, Tibshirani, Buja, JASA 89, 1994), so that

    logit_c = f^T M^-1 m_c - m_c^T M^-1 m_c / 2 + ln share_c

The rows that W was fitted to lie closer to their targets than any other. Had a row been left out, its f would have been
(f - h y) / (1 - h), with h its leverage; with the mean leverage h = df / N this too follows from sums:
m_c becomes (m_c - h e_c) / (1 - h), and M becomes M / (1 - h)^2. Without it logits would be too sure of themselves.

With many classes they still are: distances to the nearest class come to a hundred nats, and real rows are not normal so
far out. What N rows can tell is that less than one in N is of another class. So where the mean gap between a class' own
logit and the next one, at the class' mean, is above ln N, all logits are multiplied by what brings it there. Which
class is the likeliest does not change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Aims", "Fitted", "Moments", "ridge_head"]

Aims = Literal["classes", "scores"]

_STRENGTHS: Final = 161
"""How many are tried, from 10**-7 to 10 times the largest eigenvalue: each 12 % larger than the one before."""
_DECADES: Final = (-7.0, 1.0)
_SMALLEST: Final = 1e-9
"""Of eigenvalues of the scores' covariance, against the largest: scores of all classes add up to one."""


@dataclass(frozen=True)
class Moments:
    """Mean second moments of the vector (x, 1, y), in float64.

    Attributes:
        whole: (n + 1 + o, n + 1 + o), with n features and o outputs.
        features: n.
        rows: N, how many rows they are the mean of.
    """

    whole: NDArray[np.float64]
    features: int
    rows: int

    @property
    def mean_x(self) -> NDArray[np.float64]:
        """(n,)."""
        return self.whole[: self.features, self.features]

    @property
    def mean_y(self) -> NDArray[np.float64]:
        """(o,)."""
        return self.whole[self.features + 1 :, self.features]

    @property
    def xx(self) -> NDArray[np.float64]:
        """(n, n)."""
        return self.whole[: self.features, : self.features]

    @property
    def xy(self) -> NDArray[np.float64]:
        """(n, o)."""
        return self.whole[: self.features, self.features + 1 :]

    @property
    def squares_y(self) -> NDArray[np.float64]:
        """(o,)."""
        return np.diagonal(self.whole)[self.features + 1 :]


@dataclass(frozen=True)
class Fitted:
    """A head.

    Attributes:
        weight: (o, n), of logits or of scores.
        bias: (o,).
        strength: k.
        leverage: df / N.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    strength: float
    leverage: float


def ridge_head(
    moments: Moments,
    aims: Aims,
    *,
    bias: bool = True,
    strength: float | None = None,
    middle: float = 0.0,
    noise: float = 0.0,
) -> Fitted:
    """The head that moments lead to.

    Args:
        moments: Of all rows.
        aims: What targets are.
        bias: Whether the head has one. Without, a number that is nearly one is sought among the features, as which
            hidden states of language models have a direction of their own.
        strength: k; None for the one that generalised cross-validation finds.
        middle: Added to what scores come out as.
        noise: Standard deviation of noise on the features' moments; 0 for none. Then the strength is what a matrix of
            such noise alone has as half its largest eigenvalue, sqrt(n) times the noise: cross-validation by moments
            would not see it. Nor can covariances of scores be trusted, so that logits are the scores times
            2 sqrt(2 o): of two classes 4, which is linear discriminant analysis' factor 1 / (p (1 - p)) for classes as
            frequent as each other; of more than two as measured (docs/details/benchmarks.md).

    Example:
        Three rows, x = 1, 2, 3 and y = 2 x:

        >>> rows = np.array([[x, 1.0, 2 * x] for x in (1.0, 2.0, 3.0)])
        >>> fitted = ridge_head(Moments(rows.T @ rows / 3, 1, 3), "scores", strength=0.0)
        >>> fitted.weight.round(6).tolist(), abs(fitted.bias.round(6)).tolist()
        ([[2.0]], [0.0])
    """
    x, y = (moments.mean_x, moments.mean_y) if bias else (np.zeros(moments.features), np.zeros(len(moments.mean_y)))
    values, vectors = np.linalg.eigh(moments.xx - np.outer(x, x))
    # Features that are all the same say nothing; sums that no rows have, from a node that lies, end here too.
    values = np.maximum(values, 0.0)
    if not values[-1] > 0:
        strength = 1.0
    turned = vectors.T @ (moments.xy - np.outer(x, y))
    if noise and strength is None:
        strength = noise * math.sqrt(moments.features)
    if strength is None:
        strength = _strength(values, turned, float((moments.squares_y - y**2).sum()), moments.rows, bias=bias)
    leverage = _freedom(values, strength, bias=bias) / moments.rows
    weight = vectors @ (turned / (values + strength)[:, None])
    offset = (moments.mean_y - moments.mean_x @ weight if bias else np.zeros(len(y))) + middle
    if aims == "classes" and noise:
        steep = 2 * math.sqrt(2 * len(offset))
        weight, offset = steep * (weight - weight.mean(axis=1, keepdims=True)), steep * (offset - offset.mean())
    elif aims == "classes":
        weight, offset = _logits(moments, weight, offset, min(leverage, 0.9))
    if not bias:
        one = vectors @ ((vectors.T @ moments.mean_x) / (values + strength))
        weight, offset = weight + np.outer(one, offset), np.zeros(len(offset))
    return Fitted(weight.T, offset, strength, leverage)


def _freedom(values: NDArray[np.float64], strength: float, *, bias: bool) -> float:
    return float((values / (values + strength)).sum()) + bias


def _strength(
    values: NDArray[np.float64], turned: NDArray[np.float64], square: float, rows: int, *, bias: bool
) -> float:
    """The strength with the least GCV."""
    power, best = (turned**2).sum(axis=1), (np.inf, float(values[-1]))
    for strength in values[-1] * np.logspace(*_DECADES, _STRENGTHS):
        shrunk = values + strength
        residual = max(0.0, square - float((power * (2 / shrunk - values / shrunk**2)).sum()))
        left = 1 - _freedom(values, float(strength), bias=bias) / rows
        if left > 0 and residual / left**2 < best[0]:
            best = residual / left**2, float(strength)
    return best[1]


def _logits(
    moments: Moments, weight: NDArray[np.float64], offset: NDArray[np.float64], leverage: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (n, o) and biases (o,) of log-odds, from those of ridge's scores."""
    share, count = moments.mean_y, len(offset)
    # Scores of all classes add up to one, but for roundings: what is left of that must not count.
    weight, offset = weight - weight.mean(axis=1, keepdims=True), offset - offset.mean()
    least = 0.5 / moments.rows
    seen = share > least
    safe = np.where(seen, share, 1.0)
    # Mean of the scores of each class' rows, (o, o).
    of_class = (moments.xy.T @ weight) / safe[:, None] + offset
    spread = weight.T @ (moments.xx - np.outer(moments.mean_x, moments.mean_x)) @ weight
    apart = of_class - (moments.mean_x @ weight + offset)
    within = spread - (apart * np.where(seen, share, 0.0)[:, None]).T @ apart
    of_class = (of_class - leverage * (np.eye(count) - 1 / count)) / (1 - leverage)
    within = within / (1 - leverage) ** 2
    turn = np.linalg.pinv(within, rcond=_SMALLEST, hermitian=True) @ of_class.T
    bias = offset @ turn - (of_class * turn.T).sum(axis=1) / 2 + np.log(safe)
    # A class that nobody has rows of is the most frequent one, and far less likely.
    top = int(np.argmax(share))
    turn[:, ~seen], bias[~seen] = turn[:, [top]], bias[top] + np.log(least / safe[top])
    sure = _sureness(of_class, turn, bias - offset @ turn, share, seen)
    calmed = min(1.0, math.log(max(moments.rows, 3)) / sure) if sure > 0 else 1.0
    turn, bias = turn * calmed, bias * calmed
    turned = weight @ turn
    # The same for all classes changes no probability, and smaller numbers travel better.
    return turned - turned.mean(axis=1, keepdims=True), bias - bias.mean()


def _sureness(
    of_class: NDArray[np.float64],
    turn: NDArray[np.float64],
    bias: NDArray[np.float64],
    share: NDArray[np.float64],
    seen: NDArray[np.bool_],
) -> float:
    """The mean over rows of how far their class' logit is above the next one, at the mean of the class."""
    logits = (of_class @ turn + bias)[np.ix_(seen, seen)]
    if len(logits) < 2:
        return 0.0
    own = np.diagonal(logits).copy()
    np.fill_diagonal(logits, -np.inf)
    return float(((own - logits.max(axis=1)) * share[seen]).sum() / share[seen].sum())
