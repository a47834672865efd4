# SPDX-License-Identifier: Apache-2.0
"""The plan of a round: everything a participant needs to know, and nothing it could know better itself."""

from __future__ import annotations

from typing import Literal

import msgspec

from fedcore.job import TaskSection
from fedcore.schema import ModelSchema
from fedcore.types import BaseKind, Bits, Order
from fedcore.wire.manifest import Manifest

__all__ = ["OutcomeObject", "Plan", "Training", "objects_needed"]


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """The method's part of a plan: how a participant trains (design 2)."""

    method: str
    seeds: tuple[int, ...]
    """The pool's K seeds."""
    generation: int
    """How often finished subspaces were folded into the base."""
    rank: int
    min_rank: int
    """Smallest rank that a device with little memory may train instead (nested ranks)."""
    order: Order
    intervals: int
    """Intervals in the round, T / J."""
    interval_steps: int
    """Optimiser steps in an interval, J."""
    batch_size: int
    """Examples in an optimiser step; the micro-batch is the node's own choice."""
    learning_rate: float
    tensor_learning_rate: float
    """For tensors trained whole (the task head)."""
    bits: Bits
    share: Literal["examples", "uniform"]
    run_seed: int


class OutcomeObject(msgspec.Struct, frozen=True):
    """A published state as a file: whole, or the difference to `base_version`."""

    version: int
    generation: int
    base_version: int | None
    digest: str
    """Model digest of a replica that holds this version (before any fold)."""
    manifest: Manifest


class Plan(msgspec.Struct, frozen=True, kw_only=True, tag="plan"):
    """The present round, retained on the topic `plan`."""

    round: int
    phase: Literal["train", "finished"]
    """`finished`: nothing is trained any more; take the last outcome and report its digest."""
    cohort: tuple[str, ...]
    deadline_at: float
    """Unix time in seconds after which updates are late."""
    task: TaskSection
    base_kind: BaseKind
    base_digest: str
    """Of the base at this plan's generation."""
    model_schema: ModelSchema
    checksums: tuple[str, ...]
    """Of the signs of all seeds, per layer."""
    training: Training
    version: int
    """The state that the round starts from."""
    objects: tuple[OutcomeObject, ...]
    """Everything an absent node may need, oldest first; the present version is last."""


def objects_needed(plan: Plan, version: int, generation: int) -> tuple[OutcomeObject, ...] | None:
    """What a node that holds a version must fetch, in the order it applies them.

    A finished generation ends with a whole state that is folded; then the present version follows, as a difference where the
    node holds what it differs from.

    Args:
        plan: The present plan.
        version: What the node holds; 0 for nothing learned.
        generation: Folds its base has seen.

    Returns:
        The objects, oldest first, empty if the node is up to date; None if the plan does not lead there from what it holds.
    """
    needed: list[OutcomeObject] = []
    whole = {obj.version: obj for obj in plan.objects if obj.base_version is None}
    last_of = {obj.generation: obj for obj in plan.objects if obj.base_version is None}
    present = whole.get(plan.version)
    for old in range(generation, plan.training.generation):
        end = last_of.get(old)
        if end is None:
            return None
        if end.version != version:
            needed.append(end)
        version = end.version
    if version != plan.version:
        if present is None:
            return None
        smaller = [o for o in plan.objects if o.version == plan.version and o.base_version == version and not needed]
        needed.append(min([present, *smaller], key=lambda o: o.manifest.size_bytes))
    return tuple(needed)
