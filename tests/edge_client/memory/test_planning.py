# SPDX-License-Identifier: Apache-2.0
"""A node's plans through its life: rounds begin at the top, kills go down, calibration is remembered."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from edge_client.memory.limits import Limit
from edge_client.memory.planning import Planning
from edge_client.node import Node
from fedcore.config.sections import BrokerSection, DataSection, TaskSection
from fedcore.device.memoryplan import Footprint, Point
from fedcore.errors import BudgetError, WorkerError
from fedcore.round.plan import Plan
from fedcore.round.training import SubspaceTraining
from fedcore.weights.schema import ModelSchema
from fedcore.worker.messages import Measured

MB = 1_000_000
NODE = Node(
    node="n",
    run="r",
    model_folder="m",
    data=DataSection(source="x"),
    broker=BrokerSection(url="mqtts://h"),
    allocator="tuned",
)
PLENTY = Limit("the budget", 5000 * MB)


def footprint(key: str = "k") -> Footprint:
    points = tuple(
        Point(
            checkpointing=on,
            micro_batch_size=size,
            length=64,
            activations_bytes=(2 if on else 30) * size * MB,
            logits_bytes=0,
            working_bytes=0,
        )
        for on in (False, True)
        for size in (1, 2)
    )
    return Footprint(
        key=key,
        longest=64,
        runtime_bytes=300 * MB,
        weights_bytes=100 * MB,
        largest_layer_bytes=MB,
        embeddings_bytes=MB,
        mappable_embeddings_bytes=0,
        subspaces_bytes=0,
        rank_bytes=MB,
        tensors_bytes=0,
        row_bytes=1000,
        signs_bytes=0,
        points=points,
    )


def plan(number: int) -> Plan:
    training = SubspaceTraining(
        seeds=(1,),
        generation=0,
        rank=4,
        min_rank=4,
        order="cycle",
        intervals=1,
        interval_steps=1,
        batch_size=8,
        learning_rate=1.0,
        tensor_learning_rate=1.0,
        bits=8,
        share="examples",
        run_seed=0,
    )
    return Plan(
        round=number,
        phase="train",
        cohort=("n",),
        deadline_at=time.time(),
        task=TaskSection(kind="causal-lm"),
        base_kind="int8",
        base_digest="",
        model_schema=ModelSchema((), ()),
        checksums=(),
        training=training,
        version=0,
        chunk_bytes=65_536,
        objects=(),
    )


def test_kills_go_down_the_memory_steps_and_a_new_round_begins_at_the_top(tmp_path: Path) -> None:
    planning = Planning(NODE, tmp_path)
    planning.load(footprint(), plan(1), 5000 * MB, PLENTY)
    whole = planning.begin(plan(1), PLENTY)
    planning.killed(0)
    planning.forget()
    planning.load(footprint(), plan(1), 5000 * MB, PLENTY)
    assert planning.begin(plan(1), PLENTY) == whole[1:]
    planning.killed(1)
    assert planning.begin(plan(1), PLENTY) == whole[3:]
    planning.killed(len(whole))
    with pytest.raises(WorkerError, match="killed on every plan"):
        planning.begin(plan(1), PLENTY)
    assert planning.begin(plan(2), PLENTY) == whole
    assert planning.memory_step_for(0) == len(whole) - 1 and planning.memory_step_for(5000 * MB) == 0
    assert planning.words(0).startswith("micro-batch 8 of 8") and planning.components(99) == whole[-1].components


def test_what_never_fits_is_a_budget_error_and_what_does_not_fit_now_is_not(tmp_path: Path) -> None:
    planning = Planning(NODE, tmp_path)
    with pytest.raises(BudgetError, match="MiB short"):
        planning.load(footprint(), plan(1), 200 * MB, PLENTY)
    with pytest.raises(WorkerError, match=r"MiB short \(MemAvailable\)"):
        planning.load(footprint(), plan(1), 5000 * MB, Limit("MemAvailable", 100 * MB))


def test_calibration_is_remembered_for_its_key_only(tmp_path: Path) -> None:
    planning = Planning(NODE, tmp_path)
    assert planning.load(footprint(), plan(1), 5000 * MB, PLENTY)[1] is True
    planning.measured([Measured(micro_batch_size=1, length=64, static_bytes=0, peak_bytes=500 * MB)])
    again = Planning(NODE, tmp_path)
    memory, unmeasured = again.load(footprint(), plan(1), 5000 * MB, PLENTY)
    assert unmeasured is False and memory.components.slack_bytes > 50 * MB
    assert Planning(NODE, tmp_path).load(footprint("other"), plan(1), 5000 * MB, PLENTY)[1] is True
    (tmp_path / "calibration.json").write_text("{torn")
    assert Planning(NODE, tmp_path).load(footprint(), plan(1), 5000 * MB, PLENTY)[1] is True


def test_what_is_loaded_does_not_change_between_rounds(tmp_path: Path) -> None:
    planning = Planning(msgspec.structs.replace(NODE, mapped_weights=True), tmp_path)
    loaded, _ = planning.load(footprint(), plan(1), 5000 * MB, PLENTY)
    assert loaded.mapped and all(p.mapped for p in planning.begin(plan(1), PLENTY))
