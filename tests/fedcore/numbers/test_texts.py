# SPDX-License-Identifier: Apache-2.0
"""Metrics of generated answers."""

from __future__ import annotations

import random

import pytest

from fedcore.numbers.texts import exact_match, json_equality, rouge_l, same_json
from fedcore.registry import METRICS, metric_kind

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "Über", "naïve", "turn-on", "40%", "don't"]


def test_they_are_registered_as_metrics_of_texts_that_give_a_number_of_each() -> None:
    for name, metric in (("exact_match", exact_match), ("json_equality", json_equality), ("rouge_l", rouge_l)):
        assert METRICS.get(name) is metric
        assert (metric_kind(metric).compares, metric_kind(metric).each) == ("texts", True)
        assert metric([], []).shape == (0,)


def test_equality_is_of_the_json_whatever_its_form() -> None:
    right = '{"name":"HassLightSet","data":{"name":"lamp","brightness":40}}'
    assert same_json('\n {"data": {"brightness": 40, "name": "lamp"}, "name": "HassLightSet"} ', right)
    for wrong in (
        right.replace("40", '"40"'),
        right[:-1],
        f"Sure! {right}",
        "",
        right.replace("40", "4"),
        "[" * 99_999,
    ):
        assert not same_json(wrong, right)
    assert not same_json('{"a":[0]}', '{"a":[false]}') and same_json('{"a":1}', '{"a":1.0}')
    # Even where what is right cannot be parsed: a row that is no JSON is never right.
    assert json_equality(["no", "[" * 99_999], ["no", "[" * 99_999]).tolist() == [0.0, 0.0]


def test_white_space_around_a_text_does_not_count() -> None:
    assert exact_match([" yes\n", "Yes", "y es"], ["yes", "yes", "yes"]).tolist() == [1.0, 0.0, 0.0]


def test_rouge_l_is_that_of_the_package_of_this_name() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    chance = random.Random(7)
    texts = [" ".join(chance.choices(WORDS, k=chance.randrange(90))) for _ in range(60)]
    answers, right = texts[:30], texts[30:]
    expected = [scorer.score(b, a)["rougeL"].fmeasure for a, b in zip(answers, right, strict=True)]
    assert rouge_l(answers, right).tolist() == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) > 20
