# SPDX-License-Identifier: Apache-2.0
"""Who answers a text: the small model on the device, a peer's answer that is known already, or the large model at the
coordinator (FedHLM, arXiv 2507.00082)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

__all__ = ["Route", "route", "uncertainty"]

Route = Literal["answer", "reuse", "ask"]


def uncertainty(probabilities: Sequence[float]) -> float:
    """Entropy of a distribution over labels, over its largest value ln(labels): 0 for certain, 1 for knowing nothing.

    Args:
        probabilities: At least two, that sum to 1.

    Example:
        >>> uncertainty([1.0, 0.0]), uncertainty([0.25] * 4)
        (0.0, 1.0)
    """
    entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
    # Rounding may lead a little beyond either end.
    return min(1.0, max(0.0, entropy / math.log(len(probabilities))))


def route(u: float, threshold: float, similarity: float | None, least_similarity: float) -> Route:
    """Who answers.

    With a threshold of 1 the small model always does, with 0 never: at the ends the comparison does not decide.

    Args:
        u: The small model's uncertainty, 0 to 1.
        threshold: Up to where its answer counts.
        similarity: Cosine of the text with the peers' text that is most like it; None where there is none.
        least_similarity: From which on two texts are one.

    Example:
        >>> route(0.2, 0.5, None, 0.95), route(0.7, 0.5, 0.97, 0.95), route(0.7, 0.5, 0.9, 0.95)
        ('answer', 'reuse', 'ask')
    """
    if threshold >= 1 or (u <= threshold and threshold > 0):
        return "answer"
    return "reuse" if similarity is not None and similarity >= least_similarity else "ask"
