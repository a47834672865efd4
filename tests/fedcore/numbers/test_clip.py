# SPDX-License-Identifier: Apache-2.0
"""Norms and clips inside the exact sum, against integers and fractions without limit."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import ExactnessError
from fedcore.numbers.accumulator import (
    MAX_EXAMPLES,
    RowScaled,
    RunningSum,
    clip_within,
    norm_of,
    squared_norm,
    within_bounds,
)
from fedcore.numbers.clip import Clip


@st.composite
def parts(draw: st.DrawFn, rows: int = 3, columns: int = 4) -> RowScaled:
    """Any part within the bounds, also those at the edge."""
    exponent = draw(st.lists(st.integers(-32, 7), min_size=rows, max_size=rows))
    largest = [min(2**15 - 1, int(2.0 ** (7 - e))) for e in exponent]
    q = [draw(st.lists(st.integers(-top, top), min_size=columns, max_size=columns)) for top in largest]
    return RowScaled(np.array(q, np.int16), np.array(exponent, np.int8))


def units(part: RowScaled) -> list[list[int]]:
    """The numbers in units of 2**-32, as Python integers."""
    return [[int(q) << (int(e) + 32) for q in row] for row, e in zip(part.q, part.exponent, strict=True)]


@settings(max_examples=150, deadline=None)
@given(st.lists(parts(), min_size=1, max_size=3), st.floats(1e-6, 1e9))
def test_a_clipped_update_is_never_above_the_bound_and_one_within_is_left_alone(
    update: list[RowScaled], bound: float
) -> None:
    squared = sum(squared_norm(part) for part in update)
    exact = Fraction(squared, 2**64)
    assert squared == sum(a * a for part in update for row in units(part) for a in row)
    assert norm_of(squared) == pytest.approx(math.sqrt(exact), rel=1e-15)
    clip = clip_within(squared, bound)
    if clip is None:
        assert exact <= Fraction(bound) ** 2
        return
    assert exact > Fraction(bound) ** 2
    factor, kept = Fraction(clip.numerator, 2**clip.shift), 0
    for part in update:
        clipped = clip.of(np.array(units(part), np.int64))
        for a, c in zip(np.ravel(np.array(units(part), object)), np.ravel(clipped), strict=True):
            assert int(c) == math.trunc(a * factor)
            kept += int(c) ** 2
    assert Fraction(kept, 2**64) <= Fraction(bound) ** 2
    # No smaller than it must be: 16 bits of factor, and a unit of 2**-32 a number for rounding towards zero.
    numbers = sum(part.q.size for part in update)
    assert math.sqrt(kept) / 2**32 >= bound * (1 - 2**-14) - math.sqrt(numbers) / 2**32


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(parts(), st.integers(1, 50), st.booleans()), min_size=2, max_size=5),
    st.randoms(use_true_random=False),
)
def test_the_sum_with_clips_depends_on_no_order_and_changes_the_clipped_alone(updates: list, chance: object) -> None:
    clip = Clip(40_000, 18)
    shuffled = list(updates)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    totals: list[Any] = []
    for order in (updates, shuffled):
        total = RunningSum({"x": (3, 4)})
        for part, examples, clipped in order:
            total.add_examples(examples)
            total.add("x", part, examples, clip=clip if clipped else None)
        totals.append(dict(total.means())["x"])
    assert np.array_equal(*totals)
    factor, weight = Fraction(clip.numerator, 2**clip.shift), sum(examples for _, examples, _ in updates)
    for place in np.ndindex(3, 4):
        values = ((units(part)[place[0]][place[1]], examples, clipped) for part, examples, clipped in updates)
        exact = sum(examples * (math.trunc(a * factor) if clipped else a) for a, examples, clipped in values)
        assert int(totals[0][place]) == round(Fraction(exact, weight))


def test_the_largest_numbers_with_the_largest_weight_do_not_overflow() -> None:
    for bits, exponent in ((2**15 - 1, -8), (1, 7), (128, 0)):
        part = RowScaled(np.array([[bits, -bits]], np.int16), np.array([exponent], np.int8))
        assert within_bounds(part)
        for clip in (None, Clip(65_535, 16), Clip(1, 0), Clip(65_535, 62), Clip(0, 62)):
            total = RunningSum({"x": (1, 2)})
            total.add_examples(MAX_EXAMPLES)
            total.add("x", part, MAX_EXAMPLES, clip=clip)
            factor = Fraction(1) if clip is None else Fraction(clip.numerator, 2**clip.shift)
            expected = [math.trunc(a * factor) for a in units(part)[0]]
            assert dict(total.means())["x"].tolist() == [expected]


@settings(max_examples=200, deadline=None)
@given(st.integers(-128, 127), st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=3))
def test_bounds_are_those_of_integers_for_every_exponent(exponent: int, row: list[int]) -> None:
    part = RowScaled(np.array([row], np.int16), np.array([exponent], np.int8))
    allowed = -32 <= exponent <= 7 and all(abs(q) * Fraction(2) ** exponent <= 128 for q in row)
    assert within_bounds(part) == allowed


@pytest.mark.parametrize("bad", [(2**16, 20), (-1, 3), (3, 1), (1, 63), (1, -1)])
def test_a_factor_that_exact_sums_do_not_allow_is_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(ExactnessError, match="no factor that exact sums allow"):
        Clip(*bad)


def test_a_clip_survives_the_ledger_bit_for_bit() -> None:
    clip = clip_within(123456789 << 64, 0.37)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(clip), type=Clip | None) == clip
