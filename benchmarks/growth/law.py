# SPDX-License-Identifier: Apache-2.0
"""How a cost grows with a size: its exponent, and the straight line through it. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Law", "law_of"]


@dataclass(frozen=True)
class Law:
    """Of costs at some sizes.

    Attributes:
        exponent: p in cost = c size^p: 0 where it stays the same, 1 where it grows with the size.
        fixed: a in cost = a + b size.
        each: b.
    """

    exponent: float
    fixed: float
    each: float


def law_of(sizes: Sequence[float], costs: Sequence[float]) -> Law:
    """Least squares: of logarithms for the exponent; for the line of relative errors, so that small sizes count alike.

    Args:
        sizes: At least two different ones, positive.
        costs: Of each, positive.

    Example:
        >>> law = law_of([100, 1000], [7.0, 25.0])
        >>> round(law.fixed, 6), round(law.each, 6)
        (5.0, 0.02)
        >>> round(law_of([1, 10, 100], [3.0, 30.0, 300.0]).exponent, 6)
        1.0
    """
    logs = [(math.log(size), math.log(cost)) for size, cost in zip(sizes, costs, strict=True)]
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    exponent = sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)
    # cost / cost = 1 = a / cost + b size / cost: two unknowns, equally weighted.
    rows = [(1 / cost, size / cost) for size, cost in zip(sizes, costs, strict=True)]
    aa, ab, bb = (sum(r[i] * r[j] for r in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = (sum(r[i] for r in rows) for i in (0, 1))
    determinant = aa * bb - ab * ab
    return Law(exponent, (a * bb - b * ab) / determinant, (aa * b - ab * a) / determinant)
