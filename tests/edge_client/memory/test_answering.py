# SPDX-License-Identifier: Apache-2.0
"""Room for answers by which published states are measured: in the place of a training pass, within the same budget."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.memory.answering import answers_at_once, measuring_bytes
from edge_client.memory.planner import Calibration, allocator_share, calibrated, fit, plan_steps
from fedcore.device.memoryplan import Answering, Footprint
from fedcore.errors import BudgetError
from fedcore.worker.messages import Measured
from tests.edge_client.memory.test_planner import BOUNDS, MB, NONE, footprint

PRACTICE = Calibration(10 * MB, 0.02)


def answering(row: int, fixed: int = 5) -> Footprint:
    return msgspec.structs.replace(
        footprint(), answering=Answering(fixed_bytes=fixed * MB, row_bytes=row * MB), key="k"
    )


def test_as_many_as_fit_beside_what_is_always_there() -> None:
    plan = fit(answering(row=100), BOUNDS, 10_000 * MB, NONE)
    always = plan.components.total_bytes - plan.components.activations_bytes - plan.components.logits_bytes
    assert measuring_bytes(answering(row=100), plan, 0.0, 3) == always + 305 * MB
    # What training with micro-batches of 16 keeps is the answers' now, and so is what it leaves of the room.
    room = int((always + 750 * MB) / 0.96)
    assert answers_at_once(answering(row=100), plan, 0.0, room) == 7
    assert answers_at_once(footprint(), plan, 0.0, room) == 1


@settings(deadline=None)
@given(room=st.integers(350, 3000), row=st.integers(1, 400))
def test_whatever_is_chosen_has_room_for_the_answers_that_are_made(room: int, row: int) -> None:
    found = answering(row)
    try:
        plan = fit(found, BOUNDS, room * MB, PRACTICE)
    except BudgetError:
        return
    share = allocator_share(plan, PRACTICE)
    at_once = answers_at_once(found, plan, share, room * MB)
    assert at_once >= 1 and measuring_bytes(found, plan, share, at_once) <= room * MB * 0.96
    assert measuring_bytes(found, plan, share, at_once + 1) > room * MB * 0.96


def test_weights_go_to_disk_for_an_answer_and_one_that_never_fits_is_refused_with_numbers() -> None:
    tight = fit(answering(row=1), BOUNDS, 520 * MB, NONE)
    assert not tight.mapped and fit(answering(row=60), BOUNDS, 520 * MB, NONE).mapped
    with pytest.raises(BudgetError, match=r"training fits, but measuring by answers needs 1,\d\d\d MB") as caught:
        fit(answering(row=1000), BOUNDS, 520 * MB, NONE)
    assert "lower evaluation.max_new_tokens" in caught.value.remedy
    with pytest.raises(BudgetError, match="training needs"):
        fit(answering(row=1000), BOUNDS, 320 * MB, NONE)


def test_training_steps_down_and_is_calibrated_as_if_nothing_were_answered() -> None:
    top = fit(footprint(), BOUNDS, 10_000 * MB, NONE)
    assert plan_steps(answering(row=900), BOUNDS, top, NONE) == plan_steps(footprint(), BOUNDS, top, NONE)
    tiny = [Measured(micro_batch_size=1, length=32, static_bytes=480 * MB, peak_bytes=500 * MB)]
    assert calibrated(answering(row=900), top, tiny, rank=8, before=NONE) == calibrated(
        footprint(), top, tiny, rank=8, before=NONE
    )
