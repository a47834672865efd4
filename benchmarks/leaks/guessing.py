# SPDX-License-Identifier: Apache-2.0
"""What somebody who sees a node's update can tell of its texts: guesses by the update alone, by the published model,
which every node has, and by a list of texts or words that the guesser thinks of. And how good guesses are.

The head's change of a round is a sum over the node's rows of what goes into the head, each times how wrong the model
was about it: rows that were trained on are those whose score it moves most, towards their label (Zhao et al., iDLG,
arXiv 2001.02610, for labels; Yeom et al., arXiv 1709.01604, for membership by loss)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.first import FirstRound

__all__ = ["advantage", "area", "head_change", "hits", "label_guesses", "moved", "ranked"]

Floats = NDArray[np.float64]


def head_change(of: FirstRound, numbers: Floats) -> Floats:
    """The head's part of an update: (labels, features + 1), the bias last.

    Args:
        of: The round that the update is of.
        numbers: The update's, end to end.
    """
    parts = of.parts(numbers)
    weight, bias = sorted((parts[spec.name] for spec in of.plan.model_schema.tensors), key=lambda part: -part.size)
    return np.concatenate([weight, bias.reshape(-1, 1)], axis=1)


def moved(change: Floats, features: Floats | NDArray[np.float32]) -> Floats:
    """How far a head's change moves each text's score from the first label to the second, (texts,).

    Args:
        change: Of weight and, last, bias: (2, features + 1).
        features: What goes into the head, (texts, features).
    """
    towards = change[1] - change[0]
    return np.asarray(features @ towards[:-1] + towards[-1])


def ranked(moves: Floats, others: Floats) -> NDArray[np.intp]:
    """Texts, the most moved first; against what the same change does to other texts, since all move a little the same
    way.

    Args:
        moves: Of the texts in question.
        others: Of texts that the guesser knows the node cannot have.
    """
    middle, spread = np.median(others), np.std(others) or 1.0
    return np.argsort(-np.abs((moves - middle) / spread), kind="stable")


def label_guesses(moves: Floats, others: Floats) -> NDArray[np.int64]:
    """The label that each text's score moved towards, beside other texts."""
    return (moves > np.median(others)).astype(np.int64)


def hits(order: Sequence[int] | NDArray[np.intp], right: Sequence[int]) -> float:
    """Part of the right ones that are among as many first guesses.

    Example:
        >>> hits([4, 1, 0, 2], [1, 2])
        0.5
    """
    return len({int(index) for index in order[: len(right)]} & set(right)) / len(right)


def area(members: Floats, others: Floats) -> float:
    """Chance that a member's score is above another's, half for equal ones: 0.5 says nothing (area under the ROC).

    Example:
        >>> area(np.array([2.0, 1.0]), np.array([1.0, 0.0]))
        0.875
    """
    above = (members[:, None] > others[None]).mean() + (members[:, None] == others[None]).mean() / 2
    return float(above)


def advantage(members: Floats, others: Floats) -> float:
    """The most by which members are recognised more often than others are taken for one, over all thresholds of the
    score; 0 says nothing, 1 all.

    Example:
        >>> advantage(np.array([2.0, 1.0]), np.array([1.0, 0.0])), advantage(np.array([0.0]), np.array([1.0]))
        (0.5, 0.0)
    """
    thresholds = np.unique(np.concatenate([members, others]))
    best = max(float((members >= at).mean() - (others >= at).mean()) for at in thresholds)
    return max(0.0, best)
