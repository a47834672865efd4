# SPDX-License-Identifier: Apache-2.0
"""Rules of whole updates: against independent references, against Flower's, and against participants that lie."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcore.errors import ConfigError
from fedcore.methods.combining import require_combining
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.numbers.choosing import Choosing, GeometricMedian, Krum, MultiKrum
from fedcore.numbers.rules import MEAN, Median, Rule, TrimmedMean, rule_of

Units = NDArray[np.int64]
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "rules.json").read_text())


def distances(values: Units) -> list[list[int]]:
    """Python's integers, number by number."""
    rows = values.tolist()
    return [[sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]


def combined(rule: Rule, values: Units) -> Units:
    """What counts, of updates without buckets."""
    weights = np.ones(len(values), np.int64)
    if isinstance(rule, Choosing):
        weights = np.array(rule.choose(distances(values)), np.int64)
        values, weights = values[weights > 0], weights[weights > 0]
    return rule.combine(values.copy(), weights)


def points(least: int = 5, most: int = 13) -> st.SearchStrategy[Units]:
    number = st.one_of(st.integers(-3, 3), st.integers(-(2**39), 2**39))
    rows = st.lists(st.lists(number, min_size=3, max_size=3), min_size=least, max_size=most)
    return rows.map(lambda found: np.array(found, np.int64))


# The reference: floats and NumPy alone, written from the paper.
def krum_order(values: NDArray[np.float64], liars: int) -> list[int]:
    squares = ((values[:, None] - values[None]) ** 2).sum(axis=2)
    scores = [np.sort(np.delete(row, own))[: len(values) - liars - 2].sum() for own, row in enumerate(squares)]
    return np.argsort(scores, kind="stable").tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 8))
def test_krum_and_multi_krum_are_what_floats_say_where_floats_tell(seed: int, liars: int, more: int) -> None:
    values = np.random.default_rng(seed).integers(-1000, 1000, (2 * liars + 3 + more, 7))
    order, keep = krum_order(values.astype(np.float64), liars), len(values) - liars - 2
    assert np.array_equal(combined(Krum(liars=liars), values), values[order[0]])
    mean = np.rint(values[order[:keep]].mean(axis=0))
    assert np.array_equal(combined(MultiKrum(liars=liars), values), mean)


@settings(max_examples=25, deadline=None)
@given(points(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_weights_go_with_updates_in_any_order(values: Units, liars: int, chance: Any) -> None:
    order = list(range(len(values)))
    chance.shuffle(order)
    for rule in (Krum(liars=liars), MultiKrum(liars=liars), GeometricMedian()):
        one, other = rule.choose(distances(values)), rule.choose(distances(values[order]))
        assert all(type(weight) is int and weight >= 0 for weight in one) and 0 < sum(one) < 2**24
        # Of equal scores the first counts: which updates these are is the order's, how good they are is not.
        scores = Krum(liars=liars)._scores(distances(values))
        if len(set(scores)) == len(scores) or isinstance(rule, GeometricMedian):
            assert [one[index] for index in order] == other


@settings(max_examples=30, deadline=None)
@given(points(3, 9), st.data())
def test_liars_move_a_result_no_further_than_the_stated_bound(honest: Units, data: st.DataObject) -> None:
    """All of it in integers: squared distances times squared bounds."""
    largest = max(max(row) for row in distances(honest))
    for liars in range(1, len(honest) - 2):
        lies = data.draw(points(liars, liars))
        values = np.concatenate([lies, honest])
        count = len(values)
        if count >= 2 * liars + 3:
            for rule in (Krum(liars=liars), MultiKrum(liars=liars)):
                assert rule.tolerates(count) == liars
                for index, weight in enumerate(rule.choose(distances(values))):
                    nearest = min(distances(np.concatenate([values[index : index + 1], honest]))[0][1:])
                    assert not weight or nearest * (count - 2 * liars - 2) <= largest * (count - liars - 2)
        assert GeometricMedian().tolerates(count) >= liars
        found = combined(GeometricMedian(), values).astype(np.float64)
        furthest = float(np.linalg.norm(found - honest, axis=1).max())
        # A hundredth for where the iteration ends, and a unit for each number that is rounded.
        assert furthest <= 1.01 * 2 * (count - liars) / (count - 2 * liars) * largest**0.5 + 2


@pytest.mark.parametrize("seed", range(6))
def test_the_geometric_median_has_the_least_sum_of_distances(seed: int) -> None:
    chance = np.random.default_rng(seed)
    honest = chance.normal(size=(12, 40)) + 3
    lies = [np.full((7, 40), -50.0), 64 * honest[:7], chance.normal(size=(7, 40)) * 5][seed % 3]
    values = np.rint(np.concatenate([lies, honest]) * 2.0**20).astype(np.int64)

    def total(point: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(values - point, axis=1).sum())

    point = values.mean(axis=0)
    for _ in range(5000):
        near = 1 / np.maximum(np.linalg.norm(values - point, axis=1), 1e-6)
        point = (near[:, None] * values).sum(axis=0) / near.sum()
    found = combined(GeometricMedian(), values)
    assert total(found.astype(np.float64)) <= total(point) * (1 + 1e-4)
    assert np.linalg.norm(found / 2.0**20 - 3) < np.linalg.norm(combined(MEAN, values) / 2.0**20 - 3)


def test_a_geometric_median_may_lie_on_an_update_or_between_two() -> None:
    majority = np.array([[5, 5]] * 3 + [[2**39, -(2**39)], [7, 7]], np.int64)
    assert combined(GeometricMedian(), majority).tolist() == [5, 5]
    assert combined(GeometricMedian(), np.array([[0], [10]])).tolist() == [5]
    assert combined(GeometricMedian(), np.array([[7], [7], [7]])).tolist() == [7]
    assert combined(GeometricMedian(), np.array([[-9]])).tolist() == [-9]
    assert sum(GeometricMedian().choose(distances(np.zeros((300, 1), np.int64)))) < 2**24


def test_how_many_liars_each_withstands() -> None:
    assert [Krum(liars=2).tolerates(n) for n in (3, 6, 7, 8, 100)] == [0, 0, 2, 2, 2]
    assert [GeometricMedian().tolerates(n) for n in range(6)] == [0, 0, 0, 1, 1, 2]
    # In buckets of two, seven buckets are there from 13 updates on.
    assert [MultiKrum(liars=2, bucket=2).withstands(n) for n in (12, 13)] == [0, 2]


@pytest.mark.parametrize(
    ("rule", "quorum", "words"),
    [
        (rule_of("krum", 0.2, liars=3), 8, "'krum' of 8 updates with liars = 3 cannot tell which of them lies (set it and round.min_nodes to 9 or"),
        (rule_of("krum", 0.2, liars=1, bucket=2), 8, "of 8 updates in buckets of 2 with liars = 1 cannot tell which of them lies (set it and round.min_nodes to 9 or"),
        (rule_of("median", 0.2, bucket=3), 6, "'median' of 6 updates in buckets of 3 cannot tell which of them lies (set it and round.min_nodes to 7 or"),
        (rule_of("geometric-median", 0.2), 2, "of 2 updates cannot tell which of them lies (set it and round.min_nodes to 3 or"),
    ],
)  # fmt: skip
def test_too_few_updates_are_refused_with_numbers(rule: Rule, quorum: int, words: str) -> None:
    name = next(name for name in ("krum", "median", "geometric-median") if type(rule_of(name, 0.2)) is type(rule))
    with pytest.raises(ConfigError) as refused:
        require_combining(FedKRSOSettings(), rule, name, quorum)
    assert words in refused.value.one_line()
    least = int(words.split(" to ")[-1].split()[0])
    require_combining(FedKRSOSettings(), rule, name, least)


# Flower's rules of the same names, on the same updates.
GIVEN = np.array(GOLDEN["updates"], np.int64)
LIARS, TRIM = GOLDEN["liars"], Fraction(GOLDEN["trim"])
OURS: dict[str, Rule] = {
    "median": Median(),
    "trimmed-mean": TrimmedMean(TRIM),
    "krum": Krum(liars=LIARS),
    "multi-krum": MultiKrum(liars=LIARS),
}


def referred(name: str) -> NDArray[np.float64]:
    """NumPy, written from the papers."""
    floats = GIVEN.astype(np.float64)
    if name == "median":
        return np.asarray(np.median(floats, axis=0))
    if name == "trimmed-mean":
        cut = int(TRIM * len(floats))
        return np.asarray(np.sort(floats, axis=0)[cut : len(floats) - cut].mean(axis=0))
    keep = 1 if name == "krum" else len(floats) - LIARS - 2
    return np.asarray(floats[krum_order(floats, LIARS)[:keep]].mean(axis=0))


@pytest.mark.parametrize("name", OURS)
def test_rules_come_to_the_committed_numbers(name: str) -> None:
    assert combined(OURS[name], GIVEN).tolist() == GOLDEN["results"][name] == np.rint(referred(name)).tolist()


def test_the_geometric_median_keeps_its_bits() -> None:
    assert GeometricMedian().choose(distances(GIVEN)) == GOLDEN["geometric_median_weights"]
    assert combined(GeometricMedian(), GIVEN).tolist() == GOLDEN["results"]["geometric-median"]


@pytest.mark.parametrize("name", OURS)
def test_flower_comes_to_the_same_numbers(name: str) -> None:
    flower = pytest.importorskip("flwr.server.strategy.aggregate")
    results = [([row[:5].astype(np.float64), row[5:].astype(np.float64)], 10) for row in GIVEN]
    keep = len(GIVEN) - LIARS - 2
    found = {
        "median": lambda: flower.aggregate_median(results),
        "trimmed-mean": lambda: flower.aggregate_trimmed_avg(results, float(TRIM)),
        "krum": lambda: flower.aggregate_krum(results, LIARS, 0),
        "multi-krum": lambda: flower.aggregate_krum(results, LIARS, keep),
    }[name]()
    assert np.rint(np.concatenate(found)).tolist() == combined(OURS[name], GIVEN).tolist()
