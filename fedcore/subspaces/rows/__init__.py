# SPDX-License-Identifier: Apache-2.0
"""How rows of a projection are made from a seed: one function a kind, found through one table.

Rows are small integers and a kind's scale makes E[P^T P] = I. They come from SHAKE-128 and integer operations alone (a
scale: division and square root, which IEEE 754 rounds correctly), so they are the same in every language, library and
device. Row j does not depend on r."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedcore.subspaces.rows.coordinate import coordinate
from fedcore.subspaces.rows.gaussian import GAUSSIAN_SQUARES, gaussian
from fedcore.subspaces.rows.orthonormal import ORTHONORMAL_UNIT, orthonormal
from fedcore.subspaces.rows.signs import signs

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True)
class Kind:
    """A way of making rows.

    Attributes:
        rows: Of (seed, layer name, r, n): int8 (r, n).
        scale: Of (r, n): P is so many times the rows.
        largest: No entry is beyond.
    """

    rows: Callable[[int, str, int, int], NDArray[np.int8]]
    scale: Callable[[int, int], float]
    largest: int


KINDS: Final[dict[str, Kind]] = {
    "signs": Kind(signs, lambda r, n: 1.0 / math.sqrt(r), 1),
    "gaussian": Kind(gaussian, lambda r, n: math.sqrt(256 / (r * GAUSSIAN_SQUARES)), 127),
    "coordinate": Kind(coordinate, lambda r, n: math.sqrt(n / r), 1),
    "orthonormal": Kind(orthonormal, lambda r, n: 1.0 / (ORTHONORMAL_UNIT * math.sqrt(r)), 127),
}
