# SPDX-License-Identifier: Apache-2.0
"""The discrete Gaussian, sampled exactly: integers x with probability proportional to exp(-x**2 / (2 sigma**2)).

Canonne, Kamath, Steinke, arXiv 2004.00010, algorithms 1 to 3: a discrete Laplace number Y of scale t is proposed, and
accepted with probability exp(-(|Y| - sigma**2 / t)**2 / (2 sigma**2)). Any t is right; a power of two near sigma makes
the uniform number below t some bits of the stream.

Every coin with probability exp(-g), g a fraction, is thrown by comparing a uniform real number, whose first 64 bits are
there and whose others are drawn when they are asked for, with exp(-g). For nearly all numbers a float says which of the
two is larger, by far more than it can be wrong; only what is closer than `_MARGIN` is decided with as many digits as it
takes. So floats only guess, nothing is rounded, and the numbers that come out depend on the key alone, not on a
machine's `exp`. Rounded continuous noise would be another distribution, whose lowest bits tell of what it was added to
(Mironov, CCS 2012)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["KEY_BYTES", "LARGEST_SIGMA", "discrete_gaussian"]

KEY_BYTES: Final = 32
LARGEST_SIGMA: Final = 2**40
"""So that no number that ever comes out is near 2**63: beyond 45 sigma there is less than 2**-1000 of them."""
_MARGIN: Final = 2.0**-44
"""A float's guess of a probability is off by less than 2**-49: the exponent by a few units in its last place, at most
40 wide where the probability is not zero anyhow."""
_ATTEMPTS: Final = 2**14
"""In a block of the stream; part of what the golden vectors are of."""
_WORDS: Final = 4
_PROPOSED, _LAPLACE, _MULTIPLE, _ACCEPTED = range(_WORDS)
_Indices = NDArray[np.intp]


def discrete_gaussian(sigma: int, count: int, key: bytes, *, margin: float = _MARGIN) -> NDArray[np.int64]:
    """Independent numbers of the discrete Gaussian, int64 (count,).

    Args:
        sigma: Of the distribution, from 1 to `LARGEST_SIGMA`; its standard deviation is no more than that.
        count: How many.
        key: Decides all; from the system's generator, and used once.
        margin: What is decided exactly; another one, as long as floats are not that wrong, changes no number.

    Example:
        >>> discrete_gaussian(3, 8, bytes(32)).tolist()
        [0, 0, -2, 0, -1, 1, 0, -2]
    """
    if not 1 <= sigma <= LARGEST_SIGMA:
        raise ValueError(f"sigma {sigma} is outside 1 to {LARGEST_SIGMA}")
    out = np.empty(count, np.int64)
    filled = block = 0
    while filled < count:
        found = _Block(sigma, key, block, margin).accepted()[: count - filled]
        out[filled : filled + len(found)] = found
        filled, block = filled + len(found), block + 1
    return out


class _Block:
    """Attempts that one stretch of the stream decides; each has four words of 64 bits, and more if it asks.

    Args:
        sigma: Of the distribution.
        key: Of the stream.
        number: Of the block.
        margin: Closer than this to a probability a float decides nothing.
    """

    def __init__(self, sigma: int, key: bytes, number: int, margin: float) -> None:
        self._sigma, self._margin = sigma, margin
        self._seed = key + b"fedkrso discrete gaussian 1/" + number.to_bytes(8, "little")
        data = hashlib.shake_128(self._seed).digest(8 * _WORDS * _ATTEMPTS)
        self._words = np.frombuffer(data, "<u8").reshape(_WORDS, _ATTEMPTS)
        # The power of two that is nearest to sigma: sigma / t from 0.7 to 1.4.
        self._bits = sigma.bit_length() - 1
        self._bits += sigma**2 >= 2 * 4**self._bits

    def accepted(self) -> NDArray[np.int64]:
        """What becomes of the attempts that come to something, in order."""
        proposed = self._words[_PROPOSED]
        # Two shifts: one by 64 is not defined.
        below = ((proposed >> np.uint64(1)) >> np.uint64(63 - self._bits)).astype(np.int64)
        t = 2**self._bits
        kept = self._coins(_LAPLACE, np.arange(_ATTEMPTS), below / t, lambda place: Fraction(int(below[place]), t))
        size = below[kept] + t * self._multiples(kept)
        sign = 1 - 2 * (proposed[kept] & np.uint64(1)).astype(np.int64)
        # A zero of each sign would be one too many.
        once = (size != 0) | (sign == 1)
        kept, size, sign = kept[once], size[once], sign[once]
        distance = size / self._sigma - self._sigma / t

        def exactly(place: int) -> Fraction:
            return Fraction((int(size[place]) * t - self._sigma**2) ** 2, 2 * self._sigma**2 * t**2)

        taken = self._coins(_ACCEPTED, kept, distance**2 / 2, exactly)
        found: NDArray[np.int64] = size[taken] * sign[taken]
        return found

    def _coins(
        self, word: int, attempts: _Indices, exponent: NDArray[np.float64], exactly: Callable[[int], Fraction]
    ) -> _Indices:
        """Places in `attempts` of those whose coin, with probability exp(-exponent), says yes."""
        uniform = np.ldexp(self._words[word, attempts].astype(np.float64), -64)
        above = uniform - np.exp(-exponent)
        said = above < 0
        for place in np.flatnonzero(np.abs(above) < self._margin):
            said[place] = self._is_below(word, int(attempts[place]), exactly(int(place)))
        return np.flatnonzero(said)

    def _multiples(self, attempts: _Indices) -> NDArray[np.int64]:
        """How often each may add t: at least v times with probability exp(-v)."""
        words = self._words[_MULTIPLE, attempts]
        found: NDArray[np.int64] = len(_THRESHOLDS) - np.searchsorted(_THRESHOLDS, words, side="right")
        for place in np.flatnonzero(np.isin(words, _THRESHOLDS)):
            found[place] = 0
            while self._is_below(_MULTIPLE, int(attempts[place]), Fraction(int(found[place]) + 1)):
                found[place] += 1
        return found

    def _is_below(self, word: int, attempt: int, exponent: Fraction) -> bool:
        """Whether an attempt's uniform number, to as many bits as it takes, is below exp(-exponent)."""
        uniform, bits = int(self._words[word, attempt]), 64
        while True:
            low, high = _exponential(exponent, bits // 3 + 10)
            if Fraction(uniform + 1, 2**bits) <= low:
                return True
            if Fraction(uniform, 2**bits) >= high:
                return False
            more = f"/{word}/{attempt}/{bits}".encode()
            added = int.from_bytes(hashlib.shake_128(self._seed + more).digest(8), "little")
            uniform, bits = (uniform << 64) + added, bits + 64


def _exponential(exponent: Fraction, digits: int) -> tuple[Fraction, Fraction]:
    """Bounds of exp(-exponent) that are about 10**-digits of it apart; decimal's `exp` is rounded correctly."""
    # A quotient's last place, times the exponent, is what the power can be off by.
    spare = len(str(int(exponent) + 1)) + 3
    context = Context(prec=digits + spare)
    value = context.exp(context.divide(Decimal(-exponent.numerator), Decimal(exponent.denominator)))
    near, off = Fraction(value), Fraction(1, 10**digits)
    return near * (1 - off), near * (1 + off)


def _thresholds() -> NDArray[np.uint64]:
    """floor(2**64 exp(-v)) for v = 1, 2, ..., until it is zero; ascending."""
    found: list[int] = []
    while not found or found[-1]:
        low, high = (math.floor(bound * 2**64) for bound in _exponential(Fraction(len(found) + 1), 60))
        assert low == high, "sixty digits tell which integer it is"
        found.append(low)
    return np.array(found[::-1], np.uint64)


_THRESHOLDS: Final = _thresholds()
