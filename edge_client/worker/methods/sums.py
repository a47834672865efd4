# SPDX-License-Identifier: Apache-2.0
"""Sums of second moments over a node's rows; with noise that hides each row, where that is promised.

A row is a vector v of features, a one and targets, and what is summed is v v^T. A row is hidden as the part that it has
in the sum: v is scaled down until the half of v v^T that travels has a norm of at most the clip, and the sum gets
normal noise of z times the clip on every number (the Gaussian mechanism on sufficient statistics: Dwork et al.,
"Analyze Gauss", STOC 2014; Wang, arXiv 1803.02596). All of this is in whole numbers: v is cut to multiples of 2**-12,
so that sums of products are exact and the noise is a discrete Gaussian."""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcore.errors import WorkerError
from fedcore.numbers.accumulator import VALUE_BITS
from fedcore.numbers.symmetric import pack_rows
from fedcore.privacy.gaussian import KEY_BYTES, discrete_gaussian
from fedcore.privacy.noise import FRACTION_BITS, sigma_of
from fedcore.round.training import PrivateTraining
from fedcore.round.training.head import hidden_units

__all__ = ["MomentSums", "shapes_of"]

_BLOCK_ROWS = 256
_STEP_BITS = 12
_BELOW = 1 - 2.0**-20
"""Of what a row is scaled by: floats round, and no norm may come out above the clip."""


class MomentSums:
    """Sums of v v^T, the upper half of a symmetric matrix in blocks of rows, in float64 and main memory.

    Args:
        features: How many there are.
        outputs: How many targets.
        privacy: Of the plan.

    Attributes:
        blocks: The sums; of rows that are to be hidden, in units of 2**-24.
        rows: How many were added.
    """

    def __init__(self, features: int, outputs: int, privacy: PrivateTraining | None) -> None:
        self.side = features + 1 + outputs
        self.blocks = [torch.zeros(shape, dtype=torch.float64) for shape in shapes_of(self.side)]
        self.rows = 0
        self._units = torch.from_numpy(hidden_units(features, outputs)) if privacy is not None else None
        self._privacy = privacy if privacy is not None and privacy.level == "example" else None
        # Made again, the update is the same: another one would tell more than is counted.
        self._key = secrets.token_bytes(KEY_BYTES)
        self._drawn: tuple[int, NDArray[np.int64]] = -1, np.zeros(0, np.int64)

    @property
    def hides_rows(self) -> bool:
        """Whether each is hidden."""
        return self._privacy is not None

    def add(self, rows: Tensor) -> None:
        """Take some in.

        Args:
            rows: float64 (rows, numbers): features, a one, targets.
        """
        found = rows if self._units is None else rows * self._units
        if self._privacy is not None:
            found = _cut(found, self._privacy.clip)
        start = 0
        for block in self.blocks:
            stop = start + block.shape[0]
            block.addmm_(found[:, start:stop].T, found[:, start:])
            start = stop
        self.rows += len(rows)

    def packed(self) -> NDArray[np.float32]:
        """Their means, as they travel, with what noise there is.

        Raises:
            WorkerError: A number is larger than exact sums hold.
        """
        found = pack_rows(self.side, self._row, np.float32)
        largest = float(np.abs(found).max())
        if not largest <= 2**VALUE_BITS:
            raise WorkerError(
                f"second moments of features or targets reach {largest:.3g} in units that end at {2**VALUE_BITS}",
                place="head.start",
                remedy='set it to "random"; of a regression, set task.middle to the middle of the scale',
            )
        return found

    def _row(self, number: int) -> NDArray[np.float64]:
        """From the diagonal on."""
        block, place = divmod(number, _BLOCK_ROWS)
        total: NDArray[np.float64] = self.blocks[block].numpy()[place, place:]
        if self._privacy is not None:
            if self._drawn[0] != block:
                self._drawn = block, self._noise(self._privacy, block)
            before = sum(self.side - row for row in range(block * _BLOCK_ROWS, number))
            total = (total + self._drawn[1][before : before + len(total)]) * 2.0 ** (-2 * _STEP_BITS)
        mean: NDArray[np.float64] = total / self.rows
        return mean

    def _noise(self, privacy: PrivateTraining, block: int) -> NDArray[np.int64]:
        """Of all rows of a block, each from the diagonal on; drawn together, which is far quicker than row by row."""
        sigma = -(-sigma_of(privacy.noise_multiplier, privacy.clip) // 2 ** (FRACTION_BITS - 2 * _STEP_BITS))
        rows, columns = self.blocks[block].shape
        key = hashlib.shake_128(self._key + f"fedkrso moments 1/{block}".encode()).digest(KEY_BYTES)
        return discrete_gaussian(sigma, rows * columns - rows * (rows - 1) // 2, key)


def shapes_of(side: int) -> list[tuple[int, int]]:
    """Of the blocks of rows, from the diagonal's first number on."""
    return [(min(_BLOCK_ROWS, side - start), side - start) for start in range(0, side, _BLOCK_ROWS)]


def _cut(rows: Tensor, clip: float) -> Tensor:
    """Rows in units of 2**-12, each no larger than it may be; what is not finite is nothing."""
    squares = rows.square().sum(dim=1)
    # Of the upper half of v v^T, diagonal included: (|v|**4 + sum v_i**4) / 2.
    norms = ((squares.square() + rows.pow(4).sum(dim=1)) / 2).sqrt()
    factors = (clip / norms).clamp(max=1.0).sqrt() * _BELOW
    kept = torch.where(norms.isfinite(), factors, torch.zeros_like(factors))[:, None]
    return torch.trunc(torch.nan_to_num(rows, 0.0, 0.0, 0.0) * kept * 2.0**_STEP_BITS)
