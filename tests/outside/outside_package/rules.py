# SPDX-License-Identifier: Apache-2.0
"""A rule: the lower median by shares."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcore.numbers.rules import Rule
from fedcore.registry import register_rule


@register_rule("weighted-median")
class WeightedMedian(Rule):
    """The smallest number that, with all below it, has half of the weight."""

    weighted: ClassVar[bool] = True

    def tolerates(self, participants: int) -> int:
        """As far as weights are even; who claims more examples counts more."""
        return max(0, participants - 1) // 2

    def combine(self, values: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
        """Equal numbers need no order: whichever comes first, it is that number."""
        order = np.argsort(values, axis=0, kind="stable")
        below = np.cumsum(weights[order], axis=0)
        place = (2 * below >= weights.sum()).argmax(axis=0)
        return np.asarray(np.take_along_axis(np.take_along_axis(values, order, axis=0), place[None], axis=0)[0])
