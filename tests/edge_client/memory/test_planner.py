# SPDX-License-Identifier: Apache-2.0
"""The planner is pure: what fits is chosen, what is learned is given up last, and what does not fit is refused with
numbers."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.memory.planner import (
    Bounds,
    Calibration,
    calibrated,
    described,
    fit,
    plan_steps,
    plans,
    predict,
    smaller,
)
from fedcore.device.memoryplan import Footprint, MemoryPlan, Point
from fedcore.errors import BudgetError
from fedcore.worker.messages import Measured

MB = 1_000_000
NONE = Calibration(0, 0.0)


def footprint(lengths: tuple[int, ...] = (32, 128)) -> Footprint:
    """100 MB of weights; an example of 128 tokens keeps 40 MB, 4 with checkpointing, and 6 more to recompute."""
    points = [
        Point(
            checkpointing=checkpointing,
            micro_batch_size=size,
            length=length,
            activations_bytes=(4 if checkpointing else 40) * size * length * MB // 128,
            logits_bytes=MB,
            working_bytes=6 * size * length * MB // 128 if checkpointing else 0,
        )
        for checkpointing in (False, True)
        for length in lengths
        for size in (1, 2)
    ]
    return Footprint(
        longest=128,
        runtime_bytes=300 * MB,
        weights_bytes=100 * MB,
        largest_layer_bytes=2 * MB,
        embeddings_bytes=50 * MB,
        mappable_embeddings_bytes=48 * MB,
        subspaces_bytes=10 * MB,
        rank_bytes=MB,
        tensors_bytes=MB,
        row_bytes=10_000,
        signs_bytes=MB,
        points=tuple(points),
    )


BOUNDS = Bounds(batch_size=16, rank=8, min_rank=8)


def test_prediction_is_affine_in_the_micro_batch_and_names_every_component() -> None:
    components = predict(footprint(), MemoryPlan(micro_batch_size=4), NONE, rank=8)
    assert (components.activations_bytes, components.logits_bytes, components.working_bytes) == (160 * MB, MB, 0)
    assert components.optimiser_bytes == 9 * MB and components.buffer_bytes == 256 * 10_000 + MB
    assert components.total_bytes == (300 + 100 + 50 + 10 + 9 + 160 + 1) * MB + components.buffer_bytes
    on_disk = predict(footprint(), MemoryPlan(micro_batch_size=4, mapped=True), NONE, rank=8)
    assert (on_disk.weights_bytes, on_disk.embeddings_bytes) == (2 * MB, 2 * MB)


def test_a_large_room_gives_the_whole_batch_and_a_small_one_is_refused_with_the_shortfall() -> None:
    assert fit(footprint(), BOUNDS, 10_000 * MB, NONE) == plans(footprint(), BOUNDS, NONE)[0]
    assert fit(footprint(), BOUNDS, 10_000 * MB, NONE).micro_batch_size == 16
    with pytest.raises(
        BudgetError, match=r"training needs \d\d\d MiB with the smallest plan .*weights on disk.* MiB short"
    ) as caught:
        fit(footprint(), BOUNDS, 320 * MB, NONE)
    assert "raise memory_budget by" in caught.value.remedy


@given(room=st.integers(300, 1500), min_rank=st.integers(1, 8), min_length=st.sampled_from([0, 32]))
def test_whatever_is_chosen_fits_and_nothing_better_would(room: int, min_rank: int, min_length: int) -> None:
    bounds = Bounds(batch_size=16, rank=8, min_rank=min_rank, min_length=min_length)
    possible = plans(footprint(), bounds, NONE)
    try:
        chosen = fit(footprint(), bounds, room * MB, NONE)
    except BudgetError:
        assert all(plan.components.total_bytes > room * MB * 0.96 for plan in possible)
        return
    assert chosen.components.total_bytes <= room * MB * 0.96
    better = possible[: possible.index(chosen)]
    assert all(plan.components.total_bytes > room * MB * 0.96 for plan in better)


def test_what_is_learned_is_given_up_last() -> None:
    bounds = Bounds(batch_size=16, rank=8, min_rank=2, min_length=32)
    order = plans(footprint(), bounds, NONE)
    first_cut = next(i for i, plan in enumerate(order) if plan.length or plan.rank)
    assert all(not plan.length and not plan.rank for plan in order[:first_cut])
    assert any(plan.mapped for plan in order[:first_cut]), "weights go to disk before rank or length is cut"
    rank_cut, length_cut = (
        next(i for i, plan in enumerate(order) if getattr(plan, name)) for name in ("rank", "length")
    )
    assert rank_cut < length_cut
    assert {plan.rank for plan in order} == {0, 4, 2} and {plan.length for plan in order} == {0, 32}


def test_memory_steps_go_down_and_keeps_what_a_running_worker_cannot_change() -> None:
    top = fit(footprint(), BOUNDS, 10_000 * MB, NONE)
    memory_steps = plan_steps(footprint(), BOUNDS, top, NONE)
    totals = [plan.components.total_bytes for plan in memory_steps]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(memory_steps) > 4
    assert {(plan.rank, plan.length, plan.mapped) for plan in memory_steps} == {(0, 0, False)}
    assert [plan.micro_batch_size for plan in memory_steps[:3]] == [16, 8, 4], (
        "smaller micro-batches before checkpointing"
    )
    assert (
        memory_steps[-1].checkpointing and memory_steps[-1].micro_batch_size == 1 and memory_steps[-1].block_rows == 64
    )
    assert smaller(footprint(), BOUNDS, memory_steps[-1], NONE) is None


def test_the_default_allocator_is_the_first_thing_to_go() -> None:
    bounds = Bounds(batch_size=16, rank=8, min_rank=8, allocator="default")
    memory_steps = plan_steps(footprint(), bounds, fit(footprint(), bounds, 10_000 * MB, NONE), NONE)
    assert memory_steps[0].allocator == "default" and memory_steps[1].allocator == "tuned"
    assert memory_steps[1].micro_batch_size == memory_steps[0].micro_batch_size
    assert all(plan.allocator == "tuned" for plan in memory_steps[1:])


def test_weights_are_dequantised_where_that_fits_and_fall_back_between_micro_batches() -> None:
    able = msgspec.structs.replace(footprint(), dequantised_bytes=400 * MB)
    top = fit(able, BOUNDS, 10_000 * MB, NONE)
    assert top.dequantised and not top.mapped and top.micro_batch_size == 16
    assert top.components.weights_bytes == 500 * MB and "weights dequantised" in described(top, BOUNDS)
    steps = plan_steps(able, BOUNDS, top, NONE)
    places = [plan.dequantised for plan in steps]
    assert places == sorted(places, reverse=True) and places[1] and not places[-1], "given up once, and not first"
    assert not fit(able, BOUNDS, 700 * MB, NONE).dequantised
    assert not any(plan.dequantised and plan.mapped for plan in plans(able, BOUNDS, NONE))


def test_dequantised_weights_are_the_owner_s_choice_too() -> None:
    able = msgspec.structs.replace(footprint(), dequantised_bytes=400 * MB)
    asked, never = (Bounds(batch_size=16, rank=8, min_rank=8, dequantised=on) for on in (True, False))
    assert all(plan.dequantised for plan in plans(able, asked, NONE))
    assert not any(plan.dequantised for plan in plans(able, never, NONE))
    with pytest.raises(BudgetError, match="weights dequantised"):
        fit(able, asked, 700 * MB, NONE)
    # Asked for where a method cannot: it trains as it can.
    assert not fit(footprint(), asked, 10_000 * MB, NONE).dequantised


def test_owner_s_choices_are_kept() -> None:
    bounds = Bounds(batch_size=16, rank=8, min_rank=8, micro_batch_size=2, checkpointing=True, mapped=False)
    assert {(p.micro_batch_size, p.checkpointing, p.mapped) for p in plans(footprint(), bounds, NONE)} == {
        (2, True, False)
    }


def test_calibration_takes_what_tiny_steps_show_beyond_the_prediction() -> None:
    loaded = MemoryPlan(micro_batch_size=16)
    tiny = predict(footprint(), MemoryPlan(micro_batch_size=1, length=32), NONE, rank=8)
    measured = Measured(
        micro_batch_size=1, length=32, static_bytes=0, peak_bytes=tiny.total_bytes - tiny.optimiser_bytes + 7 * MB
    )
    assert calibrated(footprint(), loaded, [measured], rank=8, before=NONE) == Calibration(7 * MB, 0.0)
    assert calibrated(footprint(), loaded, [], rank=8, before=NONE) == NONE


def test_a_plan_in_words() -> None:
    plan = MemoryPlan(micro_batch_size=1, checkpointing=True, mapped=True, rank=4, length=64, block_rows=64)
    assert (
        described(plan, BOUNDS)
        == "micro-batch 1 of 16, checkpointing, weights on disk, blocks of 64 rows, rank 4, length 64"
    )
