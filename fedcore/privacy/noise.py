# SPDX-License-Identifier: Apache-2.0
"""A mean with noise: what a round publishes where nobody shall learn from it what one participant sent.

The sum of all participants' numbers, integers in units of 2**-32, gets a discrete Gaussian number added to each of it,
and is then divided by how many there were (McMahan et al., arXiv 1710.06963; the integers: Kairouz et al., arXiv
2102.06387). With every update's norm at most C, sigma = z C is what one participant hides behind, whatever it sent.

Here who holds the sum adds the noise. Where updates are masked each participant adds a part of it before
(`fedcore.privacy.shares`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from fedcore.errors import ExactnessError
from fedcore.numbers.rules import Mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcore.numbers.accumulator import Means, RunningSum

__all__ = ["FRACTION_BITS", "NoisyMean", "sigma_of"]

FRACTION_BITS: Final = 32
_MOST_BITS: Final = 39


def sigma_of(noise_multiplier: float, clip: float) -> int:
    """The noise of a sum in units of 2**-32: z C, rounded up, exactly.

    Args:
        noise_multiplier: z.
        clip: C, the largest norm of an update.

    Example:
        >>> sigma_of(0.5, 1.0) == 2**31
        True
    """
    (top, bottom), (clip_top, clip_bottom) = noise_multiplier.as_integer_ratio(), clip.as_integer_ratio()
    return -(-(top * clip_top << FRACTION_BITS) // (bottom * clip_bottom))


@dataclass(frozen=True)
class NoisyMean(Mean):
    """The mean of a round in which all count the same, with noise on the sum before it is divided.

    Attributes:
        sigma: Of the noise (`sigma_of`).
        key: 32 bytes of the system's generator, of this round alone.
        columns: By entry, which of its columns (c,) can be anything but zero whatever texts there are: those get noise,
            and the rest of the state need not be hidden.
        about: What the sum is of: with another set of updates the noise is another too, so that no difference of two
            sums is ever free of it.
        used: Entries that have had their noise.
    """

    weighted: ClassVar[bool] = False

    sigma: int = 1
    key: bytes = b""
    columns: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    about: str = ""
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if len(self.key) != 32:
            raise ExactnessError("noise without a secret key of 32 bytes")

    def of(self, total: RunningSum) -> Means:
        """What the sum comes to."""
        return _Noisy(self, total)

    def noise(self, name: str, rows: int) -> NDArray[np.int64]:
        """Of an entry, for the columns that have some: (rows, columns); the same whenever it is asked for."""
        from fedcore.privacy.gaussian import discrete_gaussian

        self.used.add(name)
        width = int(self.columns[name].sum())
        key = hashlib.shake_128(self.key + f"fedkrso noise 1/{self.about}/{name}".encode()).digest(32)
        return discrete_gaussian(self.sigma, rows * width, key).reshape(rows, width)


class _Noisy:
    """Means of a sum with noise.

    Args:
        rule: Has the noise.
        total: The sum; each participant weighs one in it.
    """

    def __init__(self, rule: NoisyMean, total: RunningSum) -> None:
        self._rule, self._total = rule, total

    def means(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """As of the sum. What noise takes beyond the bounds of exact sums is cut there: nothing is learned from it
        that the noise did not hide."""
        import numpy as np

        from fedcore.numbers.fixed import mean_fixed

        most = np.int64(1) << np.int64(_MOST_BITS)
        for name, total in self._total.sums():
            noisy = total.copy()
            if name in self._rule.columns:
                noisy[:, self._rule.columns[name]] += self._rule.noise(name, len(total))
            yield name, np.clip(mean_fixed(noisy, max(1, self._total.examples)), -most, most)
