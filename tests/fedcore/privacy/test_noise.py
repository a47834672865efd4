# SPDX-License-Identifier: Apache-2.0
"""A mean with noise is the mean of the sum and the noise, in integers."""

from __future__ import annotations

import numpy as np
import pytest

from fedcore.errors import ExactnessError
from fedcore.numbers.accumulator import RunningSum, mean_fixed, quantise_rows
from fedcore.privacy.gaussian import LARGEST_SIGMA
from fedcore.privacy.noise import NoisyMean, sigma_of

KEY = bytes(range(32))
ALL, FIRST = np.ones(6, np.bool_), np.arange(6) < 2


def summed() -> RunningSum:
    total = RunningSum({"l": (5, 6), "m": (3, 6), "unsaid": (2, 6)})
    for number in range(3):
        total.add_examples(1)
        for name, rows in (("l", 5), ("m", 3)):
            values = np.random.default_rng(number).normal(size=(rows, 6)).astype(np.float32)
            total.add(name, quantise_rows(values, 8), 1)
    return total


def rule(about: str = "1/0/a:x", sigma: int = 2**30) -> NoisyMean:
    return NoisyMean(sigma=sigma, key=KEY, columns={"l": ALL, "m": FIRST}, about=about)


def test_noise_is_added_to_the_sum_of_what_can_be_said_and_to_nothing_else() -> None:
    total, noisy = summed(), rule()
    found, sums = dict(noisy.of(total).means()), dict(total.sums())
    assert (found["l"] == mean_fixed(sums["l"] + noisy.noise("l", 5), 3)).all()
    expected = sums["m"].copy()
    expected[:, :2] += noisy.noise("m", 3)
    assert (found["m"] == mean_fixed(expected, 3)).all()
    assert not found["unsaid"].any() and noisy.used == {"l", "m"}
    # The sum itself stays as it was.
    assert (dict(total.sums())["l"] == dict(summed().sums())["l"]).all()
    plain = dict(total.means())
    assert 0.5 < (found["l"] - plain["l"]).std() * 3 / 2**30 < 1.5


def test_the_same_round_has_the_same_noise_and_another_set_of_updates_another() -> None:
    one, again, other = rule(), rule(), rule("1/0/a:x/b:y")
    assert (one.noise("l", 5) == again.noise("l", 5)).all()
    assert (one.noise("l", 5) != other.noise("l", 5)).all()
    assert (one.noise("l", 5)[:3, :2] != one.noise("m", 3)).all()


def test_noise_needs_a_secret() -> None:
    with pytest.raises(ExactnessError, match="secret key"):
        NoisyMean(sigma=1)


def test_numbers_stay_within_what_a_state_holds() -> None:
    found = dict(rule(sigma=LARGEST_SIGMA).of(summed()).means())
    assert int(np.abs(found["l"]).max()) == 2**39


def test_sigma_is_rounded_up_and_never_down() -> None:
    assert sigma_of(1.0, 1.0) == 2**32
    assert sigma_of(0.1, 0.1) == 42_949_673  # 2**32 / 100 is 42,949,672.96
