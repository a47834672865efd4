# SPDX-License-Identifier: Apache-2.0
"""Sums of several at once: the integers of Python's own arithmetic, whatever was added together, in 32 bits or in 64."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcore.numbers import fixed
from fedcore.numbers.accumulator import (
    MAX_EXAMPLES,
    Floats,
    RowScaled,
    RunningSum,
    Share,
    mean_fixed,
    squared_norm,
    within_bounds,
)
from fedcore.numbers.clip import Clip

SHAPE = (7, 6)
NONE_OR_CLIP = st.sampled_from([None, None, Clip(40_000, 18)])


@st.composite
def shares(draw: st.DrawFn) -> Share:
    """Of any width that travels, some near the bounds, some of a part of the columns."""
    kind, most = draw(st.sampled_from([(np.int8, 7), (np.int8, 127), (np.int16, 32_767)]))
    first = draw(st.sampled_from([0, 0, 0, 2]))
    columns: Any = draw(st.sampled_from([slice(first, 6), slice(first, 6), np.array([4, 0, 3])]))
    width = len(columns) if isinstance(columns, np.ndarray) else 6 - first
    chance = np.random.default_rng(draw(st.integers(0, 10**6)))
    q = chance.integers(-most, most, (7, width), endpoint=True)
    highest = 7 - max(0, int(np.ceil(np.log2(max(1, np.abs(q).max())))))
    exponent = chance.integers(draw(st.integers(-32, highest)), highest, 7, endpoint=True).astype(np.int8)
    weight = draw(st.sampled_from([1, 3, 500, 70_000, 2**20]))
    return Share(RowScaled(q.astype(kind), exponent), weight, columns, draw(NONE_OR_CLIP))


def in_python(several: list[Share]) -> NDArray[np.object_]:
    out = np.zeros(SHAPE, object)
    for share in several:
        for place, q in np.ndenumerate(share.part.q):  # type: ignore[attr-defined]
            unit = int(q) << int(share.part.exponent[place[0]]) + 32  # type: ignore[attr-defined]
            if share.clip is not None:
                unit = abs(unit) * share.clip.numerator // 2**share.clip.shift * (1 if unit > 0 else -1)
            out[place[0], np.arange(6)[share.columns][place[1]]] += unit * share.weight
    return out


@settings(max_examples=150, deadline=None)
@given(st.lists(shares(), min_size=1, max_size=6), st.integers(1, 6), st.sampled_from([1, 12, 16_384]))
def test_a_sum_is_that_of_integers_whatever_is_added_together(several: list[Share], at_once: int, block: int) -> None:
    total = RunningSum({"x": SHAPE})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fixed, "_BLOCK_ELEMENTS", block)
        for start in range(0, len(several), at_once):
            total.add_together("x", several[start : start + at_once])
    assert np.array_equal(total._sums["x"].astype(object), in_python(several))


@pytest.mark.parametrize("most", [7, 127])
def test_the_widest_sums_of_32_bits_and_the_first_beyond_are_right(most: int) -> None:
    """One participant more, and it no longer fits into 32 bits."""
    weight = 2**30 // most
    for count in (2, 3):
        parts = [RowScaled(np.full((3, 4), most, np.int8), np.full(3, -20, np.int8)) for _ in range(count)]
        for sign in (1, -1):
            total = RunningSum({"x": (3, 4)})
            signed = [RowScaled((sign * part.q).astype(np.int8), part.exponent) for part in parts]
            # More than a round's examples, which only say what a sum of so many may come to.
            total.add_together("x", [Share(part, weight) for part in signed])
            assert (total._sums["x"] == sign * count * weight * most << 12).all()


def test_scales_as_far_apart_as_they_may_be_are_right_with_the_largest_weights() -> None:
    low = RowScaled(np.full((2, 3), 127, np.int8), np.full(2, -32, np.int8))
    high = RowScaled(np.full((2, 3), 1, np.int8), np.full(2, 7, np.int8))
    total = RunningSum({"x": (2, 3)})
    weights = MAX_EXAMPLES - 5, 5
    total.add_together("x", [Share(high, weights[0]), Share(low, weights[1])])
    assert (total._sums["x"].astype(object) == weights[0] * 2**39 + weights[1] * 127).all()


def test_columns_that_some_have_are_averaged_over_those(monkeypatch: pytest.MonkeyPatch) -> None:
    total = RunningSum({"x": (2, 3)}, frozenset({"x"}))
    part = RowScaled(np.ones((2, 2), np.int8), np.zeros(2, np.int8))
    total.add_together(
        "x", [Share(part, 2, slice(0, 2)), Share(part, 6, slice(1, 3)), Share(part, 1, np.array([0, 1]))]
    )
    total.add_examples(9)
    assert (dict(total.means())["x"] / 2**32).tolist() == [[1, 1, 1]] * 2


NUMBERS = st.one_of(st.integers(-(2**39), 2**39), st.integers(-(2**51), 2**51), st.integers(-9, 9))


@settings(max_examples=300, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=9), st.integers(1, 2**11), st.sampled_from([-1, 0, 0, 1]), st.data())
def test_a_mean_of_the_largest_numbers_rounds_half_to_even(
    means: list[int], divisor: int, off: int, data: st.DataObject
) -> None:
    """Totals at, and right beside, half of the way between two integers, where a float cannot see the difference."""
    halves = data.draw(st.lists(st.booleans(), min_size=len(means), max_size=len(means)))
    totals = [mean * divisor + half * (divisor // 2) + off for mean, half in zip(means, halves, strict=True)]
    expected = [round(Fraction(total, divisor)) for total in totals]
    assert mean_fixed(np.array(totals), divisor).tolist() == expected
    assert mean_fixed(np.array([totals]).T, np.array([divisor])).tolist() == [[one] for one in expected]


def test_a_mean_has_a_divisor_for_each_column_and_none_of_its_numbers_depends_on_the_block() -> None:
    chance = np.random.default_rng(0)
    divisors = chance.integers(1, MAX_EXAMPLES, 5)
    totals = chance.integers(-(2**62), 2**62, (40, 5)) // 2**24 * divisors // 3
    whole = mean_fixed(totals, divisors)
    for block in (1, 13):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(fixed, "_BLOCK_ELEMENTS", block)
            assert np.array_equal(mean_fixed(totals, divisors), whole)
    for place in np.ndindex(40, 5):
        assert int(whole[place]) == round(Fraction(int(totals[place]), int(divisors[place[1]])))
    assert mean_fixed(np.zeros((0, 5), np.int64), divisors).shape == (0, 5)


@settings(max_examples=100, deadline=None)
@given(shares())
def test_norm_and_bounds_of_narrow_integers_are_those_of_wide_ones(share: Share) -> None:
    part = share.part
    assert isinstance(part, RowScaled)
    wide = RowScaled(part.q.astype(np.int16), part.exponent)
    units = [int(q) << int(e) + 32 for row, e in zip(part.q, part.exponent, strict=True) for q in row]
    assert squared_norm(part) == squared_norm(wide) == sum(unit**2 for unit in units)
    assert within_bounds(part) == within_bounds(wide) == (max(map(abs, units)) <= 2**39)


def test_floats_are_added_beside_integers() -> None:
    numbers = np.array([[0.5, -3.25], [2.0**-33, 1.0]], np.float32)
    part = RowScaled(np.ones((2, 2), np.int8), np.zeros(2, np.int8))
    total = RunningSum({"x": (2, 2)})
    total.add_together("x", [Share(part, 2), Share(Floats(numbers), 4), Share(part, 1)])
    assert (total._sums["x"] / 2**32).tolist() == [[5.0, -10.0], [3.0, 7.0]]
