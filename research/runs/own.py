# SPDX-License-Identifier: Apache-2.0
"""How good models are for the clients' own labels, where all are measured on the same rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["own_accuracy"]


def own_accuracy(said: Sequence[NDArray[np.int64]], wanted: NDArray[np.int64], counts: NDArray[np.int64]) -> float:
    """The accuracy that clients would see on rows dealt as their own are: of each its accuracy by label, weighted by
    how many of its rows have the label. No rows are drawn for it, so nothing is left to chance.

    Args:
        said: Labels that a model gives the rows; of one model that all share, or of each client's.
        wanted: (rows,): the right ones.
        counts: (clients, labels): each client's rows of each label. Labels of no measured row are left out.

    Example:
        >>> import numpy as np
        >>> wanted, counts = np.array([0, 0, 1, 1]), np.array([[9, 1], [0, 10]])
        >>> always = [np.array([0, 0, 0, 0]), np.array([1, 1, 1, 1])]
        >>> own_accuracy(always, wanted, counts)
        0.95
        >>> own_accuracy(always[:1], wanted, counts)
        0.45
    """
    there = np.bincount(wanted, minlength=counts.shape[1])
    kept = np.where(there > 0, counts, 0)
    right = 0.0
    for index, own in enumerate(kept):
        found = said[index if len(said) > 1 else 0] == wanted
        by_label = np.bincount(wanted, weights=found, minlength=counts.shape[1]) / np.maximum(there, 1)
        right += float((own * by_label).sum())
    return right / max(1, int(kept.sum()))
