# SPDX-License-Identifier: Apache-2.0
"""The factor by which an update is scaled down inside the exact sum (`fedcore.numbers.accumulator`).

Ledgers and reports hold factors and scale nothing: NumPy is loaded with the first number that is scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from fedcore.errors import ExactnessError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CLIP_BITS", "LARGEST_SHIFT", "Clip"]

CLIP_BITS: Final = 16
"""Bits of a clip's factor: it is at most 2**-15 of itself below the exact one."""
LARGEST_SHIFT: Final = 62
"""With |a * f| < 2**55 a larger shift gives zero as well."""


class Clip(msgspec.Struct, frozen=True):
    """A factor of at most 1, as numerator / 2**shift, by which an update is scaled down inside the exact sum.

    Raises:
        ExactnessError: Outside of what the bounds of exact sums allow.
    """

    numerator: int
    shift: int

    def __post_init__(self) -> None:
        if not (
            0 <= self.shift <= LARGEST_SHIFT and 0 <= self.numerator < 2**CLIP_BITS and self.numerator <= 2**self.shift
        ):
            raise ExactnessError(f"{self.numerator} / 2**{self.shift} is no factor that exact sums allow")

    @property
    def factor(self) -> float:
        """The factor as a number; exact."""
        return self.numerator / (1 << self.shift)

    def of(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers in units of 2**-32 (|a| <= 2**39), scaled and rounded towards zero."""
        import numpy as np

        scaled = units * np.int64(self.numerator)
        return np.asarray(np.sign(scaled) * (np.abs(scaled) >> np.int64(self.shift)), np.int64)
