# SPDX-License-Identifier: Apache-2.0
"""A plan for tests that do not look inside it."""

from __future__ import annotations

from typing import Any

import msgspec

from fedcore.config.sections import TaskSection
from fedcore.round.plan import Plan
from fedcore.round.training import HeadTraining, SubspaceTraining, Training
from fedcore.weights.schema import ModelSchema

TRAINING = SubspaceTraining(
    seeds=(1,),
    generation=0,
    rank=4,
    min_rank=4,
    order="cycle",
    intervals=1,
    interval_steps=1,
    batch_size=1,
    learning_rate=1.0,
    tensor_learning_rate=1.0,
    bits=8,
    share="examples",
    run_seed=0,
)


def subspaces(seeds: tuple[int, ...], rank: int, generation: int = 0) -> SubspaceTraining:
    """FedKRSO's part of a plan with these subspaces."""
    return msgspec.structs.replace(TRAINING, seeds=seeds, rank=rank, min_rank=rank, generation=generation)


def with_artefact(sha256: str, training: Training = TRAINING) -> Training:
    """The same part of a plan, of a run with an artefact."""
    return msgspec.structs.replace(training, projection="informed", artefact=sha256, informed_subspaces=1)


def head_before(training: Training) -> HeadTraining:
    """A round for a head, before rounds of this training."""
    common = {name: getattr(training, name) for name in Training.__struct_fields__}
    return HeadTraining(**common, then=training)


def make_plan(server_round: int = 1, *, generation: int = 0, **changes: Any) -> Plan:
    """Round `server_round` for the node `n`, from the version before; `changes` are other fields."""
    plan = Plan(
        round=server_round,
        phase="train",
        cohort=("n",),
        deadline_at=0,
        task=TaskSection(kind="causal-lm"),
        base_kind="int8",
        base_digest="",
        model_schema=ModelSchema((), ()),
        checksums=(),
        training=msgspec.structs.replace(TRAINING, generation=generation),
        version=server_round - 1,
        chunk_bytes=65_536,
        objects=(),
    )
    return msgspec.structs.replace(plan, **changes)
