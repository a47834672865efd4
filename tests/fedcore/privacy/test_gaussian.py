# SPDX-License-Identifier: Apache-2.0
"""Numbers of the discrete Gaussian: distributed as it says, decided by the key alone, and by no float."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chi2

from fedcore.privacy.gaussian import LARGEST_SIGMA, _exponential, discrete_gaussian

KEY = bytes(range(32))
GOLDEN = {
    (1, 0): [],
    (3, 12): [3, -1, 6, -5, 2, 1, 5, 0, 5, 2, 1, 0],
    (2**32, 4): [-1293497519, 7201076718, -5555802470, -10904270626],
    (LARGEST_SIGMA, 2): [-331135364956, 1843475639948],
}


@pytest.mark.parametrize(("sigma", "count"), GOLDEN)
def test_the_same_key_gives_the_same_numbers_everywhere(sigma: int, count: int) -> None:
    assert discrete_gaussian(sigma, count, KEY).tolist() == GOLDEN[sigma, count]


@pytest.mark.parametrize("sigma", [1, 2, 3, 7, 23])
def test_numbers_come_as_often_as_their_exact_probabilities_say(sigma: int) -> None:
    count = 40_000
    found = discrete_gaussian(sigma, count, bytes([sigma]) * 32)
    support = np.arange(-40 * sigma, 40 * sigma + 1)
    weights = np.exp(-(support.astype(np.float64) ** 2) / (2 * sigma**2))
    expected = count * weights / weights.sum()
    seen = np.array([(found == x).sum() for x in support])
    often = expected >= 10
    cells = [(seen[often], expected[often]), ([seen[~often].sum()], [expected[~often].sum()])]
    statistic = sum(float(((np.asarray(o) - e) ** 2 / e).sum()) for o, e in cells)
    # One key of ten thousand is beyond it, and this one is given.
    assert statistic < chi2.ppf(1 - 1e-4, int(often.sum()))


def test_large_numbers_are_as_fine_as_small_ones() -> None:
    sigma = 3 * 2**30 + 1
    found = discrete_gaussian(sigma, 50_000, KEY)
    assert abs(found.std() / sigma - 1) < 0.015
    assert abs(found.mean() / sigma) < 0.02
    # The lowest bits are those of any integer: each of 64 remainders as often as the others.
    counts = np.bincount(found & 63, minlength=64)
    assert float(((counts - 50_000 / 64) ** 2 / (50_000 / 64)).sum()) < chi2.ppf(1 - 1e-4, 63)


@pytest.mark.parametrize("sigma", [1, 5, 2**33 - 9])
def test_what_floats_say_is_what_exact_numbers_say(sigma: int) -> None:
    # With a wide margin some hundred numbers are decided by fractions, which no float has a part in.
    assert discrete_gaussian(sigma, 3000, KEY).tolist() == discrete_gaussian(sigma, 3000, KEY, margin=2.0**-7).tolist()


@pytest.mark.parametrize("exponent", [Fraction(0), Fraction(1), Fraction(1, 3), Fraction(97, 2), Fraction(10**6, 7)])
def test_bounds_of_a_power_hold_it_and_close_in(exponent: Fraction) -> None:
    (low, high), (closer, nearer) = _exponential(exponent, 20), _exponential(exponent, 60)
    assert 0 < low <= closer <= nearer <= high
    assert high - low <= 3 * high / 10**20


@pytest.mark.parametrize("sigma", [0, -1, LARGEST_SIGMA + 1])
def test_no_other_sigma(sigma: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        discrete_gaussian(sigma, 1, KEY)
