# SPDX-License-Identifier: Apache-2.0
"""What nodes measured, put together: exactly the mean over all rows, in any order, and no liar beyond its share."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.job import SafetySection
from coordinator.run.measured import pooled
from fedcore.config.sections import TaskSection
from fedcore.round.measurement import UNIT, Measurement, Sum, summed

TASK = TaskSection(kind="text-classification", labels=("a", "b"))
SAFETY = SafetySection(max_share_ratio=3.0)


def node(losses: list[float], right: int) -> Measurement:
    rows = len(losses)
    return Measurement(
        version=1, examples=rows, sums={"loss": summed(losses, rows), "accuracy": Sum(right * UNIT, rows)}
    )


LOSSES = st.lists(st.lists(st.floats(0, 20), min_size=1, max_size=9), min_size=1, max_size=6)


@given(LOSSES, st.integers())
def test_the_mean_is_that_of_all_rows_together_bit_for_bit_and_in_any_order(
    losses: list[list[float]], seed: int
) -> None:
    found = {f"node-{i}": node(own, i % (len(own) + 1)) for i, own in enumerate(losses)}
    together = pooled(found, SafetySection(max_share_ratio=0.0), TASK)
    at_once = summed([loss for own in losses for loss in own], sum(map(len, losses)))
    assert together is not None and together.loss == at_once.mean and together.capped == ()
    assert together.rows == at_once.count
    order = random.Random(seed).sample(sorted(found), len(found))
    assert pooled({name: found[name] for name in order}, SafetySection(max_share_ratio=0.0), TASK) == together


def test_each_node_is_there_by_name_with_its_own_mean() -> None:
    together = pooled({"b": node([1.0, 3.0], 1), "a": node([0.5, 0.5], 2)}, SAFETY, TASK)
    assert together is not None and list(together.scores) == ["a", "b"]
    assert (together.accuracy, together.loss, together.rows) == (0.75, 1.25, 4)
    assert (together.scores["b"].accuracy, together.scores["b"].loss, together.scores["b"].rows) == (0.5, 2.0, 2)


def test_nobody_measured_is_nothing() -> None:
    assert pooled({}, SAFETY, TASK) is None


LIES = {
    "a million rows, all wrong": Measurement(
        version=1, examples=10**6, sums={"loss": Sum(10**6 * UNIT, 10**6), "accuracy": Sum(0, 10**6)}
    ),
    "an endless loss": Measurement(version=1, examples=8, sums={"loss": Sum(2**62, 8), "accuracy": Sum(0, 8)}),
    "few rows, each of which counts for many": Measurement(
        version=1, examples=1, sums={"loss": Sum(2**61, 2**30), "accuracy": Sum(0, 2**30)}
    ),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_liar_moves_the_mean_by_no_more_than_its_share(lie: Measurement) -> None:
    honest = {f"node-{i}": node([1.0] * 8, 8) for i in range(9)}
    together = pooled({**honest, "liar": lie}, SAFETY, TASK)
    # Its weight is at most that of three ordinary nodes, and its loss three times the ordinary one.
    assert together is not None and together.accuracy >= 9 / 12
    assert 9 / 12 <= together.loss <= (9 * 1.0 + 3 * 3.0) / 12
    assert together.capped == ("liar",)


def test_an_honest_node_that_is_worse_counts_in_full() -> None:
    found = {"a": node([0.25] * 8, 8), "b": node([2.5] * 8, 2)}
    together = pooled(found, SAFETY, TASK)
    assert together is not None and together.capped == () and together.loss == (0.25 + 2.5) / 2


def test_a_loss_of_tokens_has_its_perplexity_derived() -> None:
    together = pooled({"a": node([2.0], 0)}, SAFETY, TaskSection(kind="causal-lm"))
    assert together is not None and together.metrics == {"perplexity": pytest.approx(7.389, abs=1e-3)}
