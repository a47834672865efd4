# SPDX-License-Identifier: Apache-2.0
"""Factors of updates that are behind: rational numbers that no float decides."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcore.numbers.clip import CLIP_BITS, LARGEST_SHIFT, Clip
from fedcore.round.staleness import NONE_BEHIND, Staleness, product, staleness_clip

UNIT = Fraction(1, 2**CLIP_BITS)
CLIPS = st.integers(0, LARGEST_SHIFT).flatmap(
    lambda shift: st.builds(Clip, st.integers(0, min(2**CLIP_BITS - 1, 2**shift)), st.just(shift))
)


def value(clip: Clip) -> Fraction:
    return Fraction(clip.numerator, 2**clip.shift)


@given(st.integers(1, 1000))
def test_a_factor_is_the_largest_multiple_of_its_unit_that_is_not_above_the_real_one(behind: int) -> None:
    root, inverse = staleness_clip("sqrt", behind), staleness_clip("inverse", behind)
    assert root is not None and inverse is not None
    assert value(root) ** 2 <= Fraction(1, 1 + behind) < (value(root) + UNIT) ** 2
    assert value(inverse) <= Fraction(1, 1 + behind) < value(inverse) + UNIT
    assert staleness_clip("constant", behind) is None


def test_factors_are_those_of_the_table() -> None:
    """Bits that must not change: a resumed run scales as the one before the upgrade did."""
    table = [staleness_clip("sqrt", behind) for behind in range(6)]
    assert table == [None, *(Clip(n, 16) for n in (46340, 37837, 32768, 29308, 26754))]
    assert [staleness_clip("inverse", behind) for behind in (1, 2)] == [Clip(32768, 16), Clip(21845, 16)]
    with pytest.raises(ValueError, match="1 versions ahead"):
        staleness_clip("sqrt", -1)


@given(CLIPS, CLIPS)
def test_a_product_is_never_above_both_and_hardly_below(one: Clip, other: Clip) -> None:
    both = product(one, other)
    assert both is not None and both == product(other, one)
    exact = value(one) * value(other)
    assert exact * (1 - Fraction(1, 2**15)) - Fraction(1, 2**LARGEST_SHIFT) <= value(both) <= exact
    assert product(one, None) == product(None, one) == one and product(None, None) is None


@given(st.integers(-(2**39), 2**39), st.integers(0, 50), CLIPS)
def test_what_is_scaled_is_an_integer_that_only_the_update_and_its_factor_decide(
    units: int, behind: int, clip: Clip
) -> None:
    factor = product(clip, staleness_clip("sqrt", behind))
    assert factor is not None
    (found,) = factor.of(np.array([units], np.int64))
    assert int(found) == (1 if units > 0 else -1) * (abs(units) * factor.numerator >> factor.shift)


@given(st.integers(0, 30), st.integers(1, 3), st.integers(1, 60))
def test_no_update_is_older_than_allowed_or_from_before_the_first_buffered_round(
    most: int, first: int, server_round: int
) -> None:
    allowed = Staleness(most, "sqrt", first).allowed(server_round)
    assert 0 <= allowed <= most and (allowed == 0 or server_round - allowed >= first)
    assert NONE_BEHIND.allowed(server_round) == 0
