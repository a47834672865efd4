# SPDX-License-Identifier: Apache-2.0
"""How the nodes of a run differ: a number of each, as least, quartiles and largest, and the worst by name."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coordinator.store.rows import NodeScore, NodesMeasured

__all__ = ["Spread", "spread_of"]

_WORST = 3


@dataclass(frozen=True)
class Spread:
    """One number of every node.

    Attributes:
        least: Of the worst node, where more is better.
        first_quartile: A quarter of the nodes are at or below it.
        median: Half of them.
        third_quartile: Three quarters.
        largest: Of the best node.
        worst: The worst nodes, the worst first.
    """

    least: float
    first_quartile: float
    median: float
    third_quartile: float
    largest: float
    worst: Mapping[str, float]

    @property
    def words(self) -> str:
        """In a line."""
        quartiles = f"quartiles {self.first_quartile:.3f} {self.median:.3f} {self.third_quartile:.3f}"
        worst = ", ".join(f"{node} {value:.3f}" for node, value in self.worst.items())
        return f"{self.least:.3f} to {self.largest:.3f}, {quartiles}, worst {worst}"


def spread_of(measured: NodesMeasured, number: Callable[[NodeScore], float] = lambda score: score.accuracy) -> Spread:
    """The spread of a number over nodes.

    Args:
        measured: Of a published state.
        number: Of a node's; its accuracy by default.

    Example:
        >>> scores = {name: NodeScore(8, value, 1.0) for name, value in {"a": 0.5, "b": 1.0, "c": 0.75}.items()}
        >>> spread_of(NodesMeasured(24, 0.75, 1.0, {}, scores)).words
        '0.500 to 1.000, quartiles 0.625 0.750 0.875, worst a 0.500, c 0.750, b 1.000'
    """
    values = sorted((number(score), node) for node, score in measured.scores.items())
    numbers = [value for value, _ in values]
    first, median, third = statistics.quantiles(numbers, n=4, method="inclusive") if numbers[1:] else numbers * 3
    worst = {node: value for value, node in values[:_WORST]}
    return Spread(numbers[0], first, median, third, numbers[-1], worst)
