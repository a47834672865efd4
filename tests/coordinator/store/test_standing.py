# SPDX-License-Identifier: Apache-2.0
"""Which round is the best, and when a run has not got better for long enough."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from coordinator.job import EvaluationSection
from coordinator.store.rows import NodesMeasured, RoundRow
from coordinator.store.standing import Standing, Standings, standing_of
from fedcore.errors import ConfigError


def rows(accuracies: list[float | None], **changes: Any) -> list[RoundRow]:
    return [
        RoundRow(
            number, ("a",), 0, 0, 1.0, 1.0, accuracy, None if accuracy is None else 1 - accuracy, {"f1": 0.5}, **changes
        )
        for number, accuracy in enumerate(accuracies, start=1)
    ]


def on_nodes(accuracies: list[float | None]) -> list[RoundRow]:
    measured = [
        None if accuracy is None else NodesMeasured(8, accuracy, 1 - accuracy, {}, {}) for accuracy in accuracies
    ]
    return [RoundRow(number, ("a",), 0, 0, 1.0, 1.0, nodes=one) for number, one in enumerate(measured, start=1)]


def section(**changes: Any) -> EvaluationSection:
    return EvaluationSection(**{"source": "rows.csv", **changes})


def test_the_earliest_of_equals_is_the_best() -> None:
    assert standing_of(rows([0.5, 0.75, 0.75, 0.25]), section()) == Standing("accuracy", 2, 0.75, 4)
    assert standing_of([], section()) == Standing("accuracy")
    assert standing_of(rows([0.5]), None) is None


def test_less_loss_is_better_and_a_metric_may_decide() -> None:
    assert standing_of(rows([0.5, 0.75, 0.25]), section(best_by="loss")) == Standing("loss", 2, 0.25, 3)
    assert standing_of(rows([0.5, 0.75]), section(best_by="f1")) == Standing("f1", 1, 0.5, 2)
    course = [
        msgspec.structs.replace(one, metrics={"perplexity": value, "rouge_l": value})
        for one, value in zip(rows([0.1, 0.1, 0.1]), (9.0, 4.0, 5.0), strict=True)
    ]
    assert standing_of(course, section(best_by="perplexity")) == Standing("perplexity", 2, 4.0, 3)
    assert standing_of(course, section(best_by="rouge_l")) == Standing("rouge_l", 1, 9.0, 3)


def test_a_run_stops_at_the_version_at_which_patience_ended_and_not_earlier_or_later() -> None:
    patient = section(stop_after=2)
    course: list[float | None] = [0.5, 0.75, 0.75, 0.7, 0.9]
    found = [standing_of(rows(course[:count]), patient) for count in range(1, 6)]
    assert [one.stop_at for one in found if one is not None] == [None, None, None, 4, 4]
    # The decision stands, whatever was measured afterwards; the best round is the best of all.
    assert found[-1] == Standing("accuracy", 5, 0.9, 5, 4)


def test_what_is_not_measured_is_no_worse_round_and_is_waited_for_where_it_is_due() -> None:
    assert standing_of(rows([0.5, None, None]), section(stop_after=1)) == Standing("accuracy", 1, 0.5, 1)
    every = section(stop_after=1, every=2)
    assert standing_of(rows([None, 0.5, None]), every) == Standing("accuracy", 2, 0.5, 3)
    assert standing_of(rows([None, None, None]), every) == Standing("accuracy", judged=1)


def test_nodes_judge_a_state_with_the_next_rounds_updates() -> None:
    there = section(where="nodes", source="", stop_after=1)
    assert standing_of(on_nodes([0.5, 0.75, None]), there) == Standing("nodes.accuracy", 2, 0.75, 2)
    # A round in which no node had rows held out is judged all the same, or the run would wait for ever.
    assert standing_of(on_nodes([0.5, None, None]), there) == Standing("nodes.accuracy", 1, 0.5, 2)
    both = section(where="both", best_by="nodes.loss")
    assert standing_of(on_nodes([0.5, 0.75]), both) == Standing("nodes.loss", 2, 0.25, 2)


WRONG: dict[str, dict[str, Any]] = {
    "nodes measure nothing": {"best_by": "nodes.loss"},
    "a plan does not choose code": {"where": "nodes", "metrics": ("my.module:f",)},
    "share is 0.75": {"share": 0.75},
    "every is 0": {"every": 0},
    "only a node holds rows out": {"held_out": "others.csv"},
    "no metric 'mathews'": {"metrics": ("mathews",)},
}


@pytest.mark.parametrize("words", WRONG)
def test_a_section_that_cannot_mean_anything_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        section(**WRONG[words])


def test_asked_again_while_rounds_come_and_change_it_says_what_it_would_say_of_all_of_them() -> None:
    for seed in range(60):
        chance = random.Random(seed)
        nodes = seed % 2 == 0
        wanted = section(stop_after=seed % 3, every=1 + seed % 4 // 3, where="nodes" if nodes else "coordinator")
        wanted = msgspec.structs.replace(wanted, source="" if nodes else "rows.csv")
        standings, course = Standings(wanted), list[RoundRow]()
        for _ in range(25):
            value, place = chance.choice([0.25, 0.5, 0.75]), chance.randrange(len(course)) if course else 0
            if not course or chance.random() < 0.4:
                course = [*course, RoundRow(len(course) + 1, ("a",), 0, 0, 1.0, 1.0)]
            else:
                found = {"nodes": NodesMeasured(8, value, value, {}, {})} if nodes else {"accuracy": value, "loss": 1.0}
                course = [*course[:place], msgspec.structs.replace(course[place], **found), *course[place + 1 :]]
            assert standings.of(course) == standing_of(course, wanted)
