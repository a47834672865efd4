# SPDX-License-Identifier: Apache-2.0
"""Parts of noise that nodes add before they mask: enough whoever vanishes, and a sum of them is what is accounted."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent, rdp
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcore.privacy.accounting import Releases, epsilon_of
from fedcore.privacy.gaussian import discrete_gaussian
from fedcore.privacy.noise import sigma_of
from fedcore.privacy.shares import counted_on, share_sigma, spread
from fedcore.round.secure import lane_bytes_for

NOISES = st.floats(0.1, 100)
CLIPS = st.floats(1e-2, 2)
LEAST = st.integers(3, 2_000)
BITS = st.integers(8, 32)


@given(NOISES, CLIPS, LEAST, BITS)
def test_those_who_are_counted_on_have_enough_and_no_more_than_whole_numbers_need(
    noise: float, clip: float, least: int, bits: int
) -> None:
    one, honest = share_sigma(noise, clip, least, bits), counted_on(least)
    needed = Fraction(noise) * Fraction(clip) * 2**bits
    assert one**2 * honest >= needed**2
    # One unit less is too little for what the sum needs, itself rounded up to units twice.
    assert (one - 1) ** 2 * honest < (needed + 2) ** 2
    if bits == 32:
        assert one == share_sigma(1.0, sigma_of(noise, clip) / 2**32, least, 32), "rounded up once"


@given(LEAST)
def test_a_tenth_and_one_at_least_may_tell_what_they_have_added(least: int) -> None:
    assert 1 <= counted_on(least) <= min(least - 1, 0.9 * least)


@given(NOISES, CLIPS, st.integers(3, 60), st.integers(0, 60), st.integers(1, 40))
def test_the_report_s_epsilon_holds_for_every_number_that_vanish(
    noise: float, clip: float, least: int, more: int, rounds: int
) -> None:
    """Whoever stays beyond the least, and whoever tells: the noise that is left costs no more than is said, by the
    library itself."""
    one = share_sigma(noise, clip, least, 32)
    left = math.sqrt(counted_on(least) + more) * one / 2**32 / clip
    assert left >= noise * (1 - 1e-12)
    accountant = rdp.RdpAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(left), rounds))
    assert accountant.get_epsilon(1e-3) <= epsilon_of(noise, 1e-3, Releases(rounds)) * (1 + 1e-9)


def probabilities(sigma: float, reach: int) -> NDArray[np.float64]:
    weights = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_sum_of_few_wide_numbers_is_the_one_that_is_accounted_for(count: int) -> None:
    """The bound by which the module's text has parts of 16 units enough, at parts of 1.2 units, where it can be seen;
    against the distributions themselves."""
    sigma, reach = 1.2, 14
    summed = one = probabilities(sigma, reach)
    for _ in range(count - 1):
        summed = np.convolve(summed, one)
    whole = probabilities(sigma * math.sqrt(count), (len(summed) - 1) // 2)
    middle = slice(len(summed) // 2 - 9, len(summed) // 2 + 10)
    apart = np.abs(np.log(summed[middle] / whole[middle])).max()
    tau = 10 * sum(math.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1)) for k in range(1, count))
    assert 0 < apart <= tau < 1e-5
    assert 10 * 1e5 * math.exp(-(math.pi**2) * 16**2) == 0.0, "of parts of 16 units a float holds nothing of it"


def test_what_comes_out_of_a_sum_has_the_variance_that_it_should() -> None:
    one, count = share_sigma(0.5, 1.0, 10, 12), 30_000
    total = sum(discrete_gaussian(one, count, bytes([number]) * 32) for number in range(9))
    assert isinstance(total, np.ndarray)
    assert total.std() == pytest.approx(0.5 * 2**12, rel=0.02)
    # Kurtosis of a normal distribution: parts that are not independent would have another.
    assert float((total / total.std()) ** 4 @ np.ones(count)) / count == pytest.approx(3.0, abs=0.15)


@given(NOISES, CLIPS, LEAST, BITS)
def test_lanes_have_room_for_the_noise(noise: float, clip: float, least: int, bits: int) -> None:
    one = share_sigma(noise, clip, least, bits)
    room = spread(one, least)
    assert room >= 16 * one * math.sqrt(least)
    size = lane_bytes_for(least, bits, clip, 1, room)
    assert size == 8 or room + least * clip * 2**bits < 2 ** (8 * size - 1)
