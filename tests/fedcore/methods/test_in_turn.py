# SPDX-License-Identifier: Apache-2.0
"""Methods whose nodes train one after the other: which jobs can have them, and whose turn it is."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.job import Job, ModelSection, RoundSection
from coordinator.rounds.cohort import next_in_turn
from fedcore.config.sections import BrokerSection, TaskSection
from fedcore.errors import ConfigError
from fedcore.methods.whole.fedcybgd import FedCyBGDSettings


def job(**keys: Any) -> Job:
    return Job(
        run="r",
        model=ModelSection(folder="m"),
        task=TaskSection(kind="text-classification", labels=("a", "b")),
        method=FedCyBGDSettings(),
        round=RoundSection(**keys),
        broker=BrokerSection(url="mqtts://localhost"),
    )


def test_a_job_must_let_nodes_take_turns() -> None:
    assert job(cohort=1, order="cycle").method.in_turn
    for keys in ({}, {"cohort": 1}, {"cohort": 2, "order": "cycle"}):
        with pytest.raises(ConfigError, match=r"one node train at a time, in turn.*write cohort = 1 and order"):
            job(**keys)
    with pytest.raises(ConfigError, match="a cycle goes around in cohorts"):
        job(order="cycle")


def test_nodes_go_around_and_who_is_away_comes_first_when_it_is_back() -> None:
    last: dict[str, int] = {}
    turns = []
    for server_round in range(1, 9):
        (node,) = next_in_turn([name for name in "abc" if name != "b" or server_round > 5], 1, last)
        last[node] = server_round
        turns.append(node)
    assert turns == list("acacabca")
    assert next_in_turn("cab", 2, {"a": 1}) == ("b", "c") and next_in_turn("cab", 0, {}) == ("a", "b", "c")
