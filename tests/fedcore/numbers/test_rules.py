# SPDX-License-Identifier: Apache-2.0
"""Rules against an independent reference, and against participants that lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.attacks.lies import colluding, scaled, sign_flip, small_shift
from fedcore.errors import ConfigError
from fedcore.numbers.accumulator import RowScaled, RunningSum
from fedcore.numbers.rules import MEAN, Median, Rule, TrimmedMean, rule_of
from fedcore.registry import RULES, register_rule

Units = NDArray[np.int64]
LARGEST = 2**39
ROBUST = [Median(), *(TrimmedMean(Fraction(trim)) for trim in ("0.1", "0.2", "0.4"))]


def combined(rule: Rule, values: Units, weights: Units | None = None) -> Units:
    return rule.combine(values.copy(), np.ones(len(values), np.int64) if weights is None else weights)


def matrices(least: int = 1) -> st.SearchStrategy[Units]:
    """(participants, 3), with ties, and with numbers at both ends of what is allowed."""
    number = st.one_of(st.integers(-3, 3), st.integers(-LARGEST, LARGEST), st.sampled_from([-LARGEST, LARGEST]))
    rows = st.lists(st.lists(number, min_size=3, max_size=3), min_size=least, max_size=13)
    return rows.map(lambda found: np.array(found, np.int64))


def half_even(value: Fraction) -> int:
    """Python's own rounding of a fraction is half to even."""
    return round(value)


@settings(max_examples=200, deadline=None)
@given(matrices(), st.randoms(use_true_random=False))
def test_rules_are_what_fractions_without_limit_say_in_any_order(values: Units, chance: Any) -> None:
    order = list(range(len(values)))
    chance.shuffle(order)
    for rule in [MEAN, *ROBUST]:
        dropped = rule.tolerates(len(values))
        for column, found in zip(values.T.tolist(), combined(rule, values).tolist(), strict=True):
            left = sorted(column)[dropped : len(column) - dropped]
            assert found == half_even(Fraction(sum(left), len(left)))
        assert combined(rule, values[order]).tobytes() == combined(rule, values).tobytes()


@settings(max_examples=100, deadline=None)
@given(matrices())
def test_the_median_is_numpys_and_the_trimmed_mean_that_of_sorted_floats(values: Units) -> None:
    """float64 holds every number here, and half of every sum of two; rint rounds half to even."""
    floats = values.astype(np.float64)
    assert combined(Median(), values).tolist() == np.rint(np.median(floats, axis=0)).tolist()
    for rule in ROBUST[1:]:
        cut = rule.tolerates(len(values))
        left = np.sort(floats, axis=0)[cut : len(values) - cut]
        assert combined(rule, values).tolist() == np.rint(left.mean(axis=0)).tolist()


@settings(max_examples=100, deadline=None)
@given(matrices(), st.data())
def test_the_mean_is_the_running_sums_by_weights(values: Units, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 10**6), min_size=len(values), max_size=len(values)))
    total = RunningSum({"x": (1, 3)})
    for row, weight in zip(values // 2**25, weights, strict=True):
        total.add_examples(weight)
        total.add("x", RowScaled(row[None].astype(np.int16), np.array([-7], np.int8)), weight)
    ((_, mean),) = total.means()
    assert np.array_equal(combined(MEAN, values // 2**25 << 25, np.array(weights))[None], mean)


def test_halves_go_to_even_numbers_and_equal_ones_need_no_order() -> None:
    rows = np.array([[1, 2, -1, -2, 7], [2, 3, -2, -3, 7]], np.int64)
    assert combined(Median(), rows).tolist() == [2, 2, -2, -2, 7]
    assert combined(Median(), np.concatenate([rows, rows])).tolist() == [2, 2, -2, -2, 7]


def test_how_many_liars_each_withstands() -> None:
    assert [Median().tolerates(n) for n in range(8)] == [0, 0, 0, 1, 1, 2, 2, 3]
    fifth = TrimmedMean(Fraction("0.2"))
    assert [fifth.tolerates(n) for n in range(12)] == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2]
    # As written, not as a float has it: 0.1 * 30 is 3.0000000000000004, and 0.29 * 100 is 28.999999999999996.
    assert rule_of("trimmed-mean", 0.29).tolerates(100) == 29 and rule_of("trimmed-mean", 0.1).tolerates(30) == 3
    assert all(2 * rule_of("trimmed-mean", 0.499).tolerates(n) < n for n in range(1, 40))
    assert MEAN.tolerates(100) == 0


@settings(max_examples=300, deadline=None)
@given(matrices(), st.data())
def test_fewer_liars_than_a_rule_withstands_move_no_number_beyond_what_honest_ones_sent(
    honest: Units, data: st.DataObject
) -> None:
    for rule in ROBUST:
        most = next(n for n in range(40) if rule.tolerates(len(honest) + n + 1) < n + 1)
        lies = data.draw(matrices())[:most]
        assert len(lies) <= rule.tolerates(len(honest) + len(lies))
        found = combined(rule, np.concatenate([lies, honest]))
        assert (found >= honest.min(axis=0)).all() and (found <= honest.max(axis=0)).all()


# Attacks, on 20 updates of 500 numbers: honest ones are a common change and as much noise.
PARTICIPANTS, NUMBERS = 20, 500


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4])
@pytest.mark.parametrize("attack", [sign_flip, scaled, small_shift, colluding])
def test_attacks_move_the_mean_and_what_withstands_them_no_further_than_honest_updates_reach(
    attack: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]], share: float
) -> None:
    chance = np.random.default_rng(7)
    true, liars = chance.normal(size=NUMBERS) * 0.01, round(share * PARTICIPANTS)
    honest = true + chance.normal(size=(PARTICIPANTS - liars, NUMBERS)) * 0.01
    sent = np.rint(np.concatenate([attack(honest[:liars], honest), honest]) * 2.0**32).astype(np.int64)
    own = np.rint(honest * 2.0**32).astype(np.int64)

    def error(rule: Rule, values: Units) -> float:
        """Distance to the true change, of its own size."""
        return float(np.linalg.norm(combined(rule, values) / 2.0**32 - true) / np.linalg.norm(true))

    for rule in (Median(), TrimmedMean(Fraction(str(share)))):
        assert rule.tolerates(PARTICIPANTS) >= liars
        found = combined(rule, sent)
        assert (found >= own.min(axis=0)).all() and (found <= own.max(axis=0)).all()
        if attack is small_shift:
            # Among what honest ones send there is nothing to tell it by: the mean is moved least (docs/security.md).
            assert error(MEAN, sent) < error(rule, sent) < 1.2
        else:
            assert error(rule, sent) < 0.6 * error(MEAN, sent) and error(rule, sent) < 1.2


def test_beyond_what_it_withstands_a_rule_follows_the_liars() -> None:
    honest, lies = np.zeros((4, 1), np.int64), np.full((5, 1), 77, np.int64)
    assert combined(Median(), np.concatenate([honest, lies])).item() == 77
    assert combined(TrimmedMean(Fraction("0.2")), np.concatenate([honest[:3], lies[:2]])).item() == 26


def test_an_unknown_rule_is_named_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"safety.rule: no rule 'medain' \(did you mean 'median'\?\)"):
        rule_of("medain", 0.2, place="safety.rule")
    monkeypatch.setattr(RULES, "_entries", dict(RULES._entries))

    @register_rule("largest")
    class Largest(Rule):
        """Withstands nothing."""

        def tolerates(self, participants: int) -> int:
            return 0

        def combine(self, values: Units, weights: Units) -> Units:
            return np.asarray(values.max(axis=0))

    assert combined(rule_of("largest", 0.2), np.array([[1], [3], [2]])).item() == 3
    assert math.isclose(float(rule_of("largest", 0.3).trim), 0.3)
