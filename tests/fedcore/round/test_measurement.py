# SPDX-License-Identifier: Apache-2.0
"""A node's sums: exact, the same in any order, and refused where they cannot be."""

from __future__ import annotations

import math
import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import make_plan

from fedcore.errors import UpdateRefused
from fedcore.model.update import check_update, write_update
from fedcore.numbers.records import write_records
from fedcore.round.header import UpdateHeader
from fedcore.round.measurement import UNIT, Measurement, NodeEvaluation, Sum, check_measurement, summed

ASKED = NodeEvaluation(metrics=("f1",))


def measurement(**sums: Sum) -> Measurement:
    usual = {"loss": Sum(3 * UNIT, 4), "accuracy": Sum(2 * UNIT, 4), "f1": Sum(UNIT, 4)}
    return Measurement(version=1, examples=4, sums={**usual, **sums})


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers())
def test_a_sum_is_the_same_in_any_order_and_near_the_real_one(values: list[float], seed: int) -> None:
    shuffled = random.Random(seed).sample(values, len(values))
    assert summed(shuffled, len(values)) == summed(values, len(values))
    assert summed(values, 1).mean == pytest.approx(math.fsum(values), abs=len(values) / UNIT)


def test_what_a_diverged_model_gives_is_still_a_sum() -> None:
    assert summed([math.inf, math.nan, -math.inf, 1e300], 4) == summed([2.0**20, 2.0**20, -(2.0**20), 2.0**20], 4)


def test_a_measurement_as_the_plan_asks_is_taken() -> None:
    check_measurement(measurement(), ASKED, 1, "n")


@pytest.mark.parametrize(
    ("found", "asked", "version", "reason"),
    [
        (measurement(), None, 1, "did not ask"),
        (measurement(), NodeEvaluation(due=False, metrics=("f1",)), 1, "did not ask"),
        (measurement(), ASKED, 2, "version 1 where the plan has 2"),
        (measurement(), NodeEvaluation(), 1, "accuracy, f1, loss where the plan has accuracy, loss"),
        (measurement(own=Sum(0, 1)), ASKED, 1, "where the plan has"),
        (measurement(accuracy=Sum(5 * UNIT, 4)), ASKED, 1, "accuracy 1.25"),
        (measurement(accuracy=Sum(-5 * UNIT, 4)), ASKED, 1, "accuracy -1.25"),
        (measurement(loss=Sum(-1, 4)), ASKED, 1, "cannot be"),
        (measurement(f1=Sum(2**62, 1)), ASKED, 1, "f1 of 1.07e+09"),
    ],
)
def test_what_cannot_be_is_refused(found: Measurement, asked: NodeEvaluation | None, version: int, reason: str) -> None:
    with pytest.raises(UpdateRefused, match=reason.replace("+", r"\+")):
        check_measurement(found, asked, version, "n")


BAD_NUMBERS = {
    "nothing counted": {"examples": 0},
    "more than an integer holds": {"sums": {"loss": [2**63, 4], "accuracy": [0, 4]}},
    "half a row": {"examples": 1.5},
    "a text": {"sums": {"loss": ["much", 4], "accuracy": [0, 4]}},
    "no count": {"sums": {"loss": [0, 0], "accuracy": [0, 4]}},
    "a name that moves a cursor": {"sums": {"\x1b[2J": [0, 4]}},
}


@pytest.mark.parametrize("bad", BAD_NUMBERS.values(), ids=BAD_NUMBERS.keys())
def test_an_update_with_malformed_numbers_is_refused_whole(tmp_path: Path, bad: dict[str, object]) -> None:
    plan = msgspec.structs.replace(make_plan(2), evaluation=NodeEvaluation())
    right = Measurement(version=1, examples=4, sums={"loss": Sum(UNIT, 4), "accuracy": Sum(UNIT, 4)})
    path = tmp_path / "update"
    header = UpdateHeader(
        run="t", round=2, node="n", version=1, examples=5, rank=4, subspaces=(0,), loss=1.0, seconds=1.0, measured=right
    )
    write_update(path, header, ())
    assert check_update(path, plan, "t", "n").header.measured == right

    foreign = {**msgspec.to_builtins(header), "measured": {**msgspec.to_builtins(right), **bad}}
    write_records(path, foreign, ())
    with pytest.raises(UpdateRefused, match=r"measured|not an update"):
        check_update(path, plan, "t", "n")


def test_an_update_may_measure_as_much_as_a_plan_may_ask(tmp_path: Path) -> None:
    names = tuple(f"metric-{number}" for number in range(32))
    plan = msgspec.structs.replace(make_plan(2), evaluation=NodeEvaluation(metrics=names))
    found = Measurement(version=1, examples=4, sums={name: Sum(UNIT, 4) for name in ("loss", "accuracy", *names)})
    path, seeds = tmp_path / "update", (0,)
    header = UpdateHeader(
        run="t",
        round=2,
        node="n",
        version=1,
        examples=5,
        rank=4,
        subspaces=seeds,
        loss=1.0,
        seconds=1.0,
        measured=found,
    )
    write_update(path, header, ())
    assert check_update(path, plan, "t", "n").header.measured == found


def test_an_older_program_reads_the_header_and_its_own_is_read() -> None:
    header = UpdateHeader(run="t", round=2, node="n", version=1, examples=5, loss=1.0, seconds=1.0)
    old = {key: value for key, value in msgspec.to_builtins(header).items() if key != "measured"}
    assert msgspec.convert(old, UpdateHeader) == header
