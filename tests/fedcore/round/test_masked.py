# SPDX-License-Identifier: Apache-2.0
"""A masked update's file is one of its attempt, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import make_plan

from coordinator.rounds.policy import largest_update
from fedcore.errors import SecureError, UpdateRefused
from fedcore.methods.beside.secure import SecureSection
from fedcore.round.masked import header_bytes, lanes_bytes, require_masked
from fedcore.round.secure import SecureRound
from fedcore.weights.schema import LayerSpec, ModelSchema

SCHEMA = ModelSchema((LayerSpec("l", 30, 16),), ())
PLAN = make_plan(
    cohort=("n", "o", "p"),
    model_schema=SCHEMA,
    checksums=("0" * 16,),
    secure=SecureSection().asked(3, 0.0, 0, "examples"),
)


def written(path: Path, plan: Any = PLAN, node: str = "n", run: str = "r", more: int = 0) -> Path:
    path.write_bytes(header_bytes(plan, run, node) + bytes(lanes_bytes(plan) + more))
    return path


def test_a_file_of_this_attempt_is_taken_and_says_nothing_of_its_node_s_text(tmp_path: Path) -> None:
    header = require_masked(written(tmp_path / "f"), PLAN, "r", "n")
    assert (header.node, header.round, header.examples, header.loss) == ("n", 1, 0, 0.0)
    # 30 rows of one subspace of rank 4, the weight and the loss.
    assert lanes_bytes(PLAN) == (30 * 4 + 2) * 8 <= largest_update(PLAN)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"node": "o"}, "a masked update of attempt 1-train-0 by o"),
        ({"run": "other"}, "a masked update of attempt 1-train-0 by n"),
        ({"plan": msgspec.structs.replace(PLAN, deadline_at=1.0)}, "of attempt 1-train-1000 by n"),
        ({"more": 1}, f"{lanes_bytes(PLAN) + 1 + len(header_bytes(PLAN, 'r', 'n'))} bytes, is none for attempt"),
    ],
)
def test_every_other_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UpdateRefused, match=words):
        require_masked(written(tmp_path / "f", **changes), PLAN, "r", "n")


@given(data=st.binary(max_size=200))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_foreign_bytes_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(data)
    with pytest.raises(UpdateRefused):
        require_masked(path, PLAN, "r", "n")


def test_a_plan_whose_lanes_have_no_room_is_refused_on_the_node() -> None:
    small = SecureRound(lane_bytes=4)
    with pytest.raises(SecureError, match="the sum of 3 nodes needs 8 bytes a number, and has 4"):
        small.require_room(3, uniform=False)
    with pytest.raises(SecureError, match="needs 6 bytes"):
        small.require_room(3, uniform=True)
