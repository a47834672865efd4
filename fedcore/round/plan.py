# SPDX-License-Identifier: Apache-2.0
"""The plan of a round: everything a participant needs to know, and nothing it could know better itself."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from fedcore.config.sections import TaskSection
from fedcore.errors import MalformedMessage
from fedcore.fields.checked import (
    Address,
    Checksum,
    ChunkBytes,
    Name,
    OptionalSha256,
    RoundNumber,
    RunId,
    Sha256,
    UnixSeconds,
)
from fedcore.fields.manifest import Manifest
from fedcore.fields.types import BaseKind
from fedcore.round.measurement import NodeEvaluation
from fedcore.round.secure import SecureRound
from fedcore.round.training import AnyTraining
from fedcore.weights.schema import ModelSchema

__all__ = [
    "ArtefactObject",
    "ObjectKind",
    "Plan",
    "Position",
    "PublishedObject",
    "StateObject",
    "address_of",
    "cheapest_way",
    "objects_needed",
    "published_digest",
]


# A matrix of the state travels as one record of at most so many numbers (fedcore.numbers.records).
_MAX_NUMBERS = 2**27

ObjectKind = Literal["whole", "difference", "snapshot"]


class StateObject(msgspec.Struct, frozen=True):
    """A published file that takes a replica to a version.

    - `whole`: the learned state, in the subspaces of its generation.
    - `difference`: the same, as the difference to `base_version`.
    - `snapshot`: the base of its generation, merged as often as that says, with the state that the generation began
      with."""

    version: RoundNumber
    generation: RoundNumber
    base_version: RoundNumber | None
    digest: Sha256
    """Model digest of a replica that has taken this object (before any further merge)."""
    manifest: Manifest
    snapshot: bool = False

    @property
    def kind(self) -> ObjectKind:
        """Which of the three it is."""
        if self.snapshot:
            return "snapshot"
        return "whole" if self.base_version is None else "difference"


class ArtefactObject(msgspec.Struct, frozen=True):
    """The published file that the run's method asked for (`fedcore.round.artefact`): fetched once, before a model is
    loaded, and kept."""

    manifest: Manifest

    @property
    def version(self) -> int:
        """It was there before anything was learned."""
        return 0


PublishedObject = StateObject | ArtefactObject


class Plan(msgspec.Struct, frozen=True, kw_only=True, tag="plan"):
    """The present round, retained on the topic `plan`."""

    round: RoundNumber
    phase: Literal["train", "finished"]
    """`finished`: nothing is trained any more; take the last published state and report its digest."""
    cohort: tuple[Name, ...]
    deadline_at: UnixSeconds
    """Unix time in seconds after which updates are late."""
    task: TaskSection
    base_kind: BaseKind
    base_digest: OptionalSha256
    """Of the base at this plan's generation."""
    model_schema: ModelSchema
    checksums: tuple[Checksum, ...]
    """Of the signs of all seeds, per layer."""
    training: AnyTraining
    version: RoundNumber
    """The state that the round starts from."""
    chunk_bytes: ChunkBytes
    """Largest chunk that the coordinator found to pass the broker."""
    objects: tuple[StateObject, ...]
    """Everything an absent node may need, oldest first; the present version is last."""
    start_digest: OptionalSha256 = ""
    """Model digest of a replica that stands where the round starts: merged, in the round's subspaces."""
    checkpoint_digest: OptionalSha256 = ""
    """Of the base at generation 0, which is the checkpoint; empty in a run that was begun before there was this
    field."""
    artefact: ArtefactObject | None = None
    """The file that `training` names, in methods that ask for one."""
    evaluation: NodeEvaluation | None = None
    """What nodes hold out and measure; None where they do not."""
    addresses: dict[Sha256, Address] = {}
    """Where some of the objects also lie, by their hash: to be fetched from there by whoever trusts the server, and
    for as long as the address holds."""
    run_id: RunId = ""
    """Tells this run from every other of its name; empty where all participants are in one process."""
    secure: SecureRound | None = None
    """How updates are masked, in a run with secure aggregation."""
    max_staleness: RoundNumber = 0
    """Rounds by which what an update was trained for may be behind this one, and the update still counts; 0 but where
    rounds are buffered."""

    @property
    def key(self) -> str:
        """Tells this plan from every other of its run: also from that of the same round when it opened before."""
        return f"{self.round}-{self.phase}-{round(1000 * self.deadline_at)}"

    def takes(self, server_round: int) -> bool:
        """Whether an update that was trained for a round still counts, as far as this plan says.

        Args:
            server_round: For which it was trained.
        """
        return self.phase == "train" and 0 <= self.round - server_round <= self.max_staleness

    def __post_init__(self) -> None:
        # What no field can say alone. The label set is a list by now: a name would have nodes call a function that a
        # plan names.
        if isinstance(self.task.labels, str):
            raise ValueError("a plan carries its labels, not a function's name")
        if self.task.template is not None:
            raise ValueError("a plan carries its template, not a file's name")
        if len(self.checksums) != (len(self.model_schema.layers) if self.training.seeds else 0):
            raise ValueError(f"{len(self.checksums)} checksums for {len(self.model_schema.layers)} layers")
        named = "" if self.artefact is None else self.artefact.manifest.sha256
        if self.training.artefact != named or (named != "") != (self.training.artefact_kind is not None):
            raise ValueError("a plan whose artefact is not that of its training")
        if named not in self.training.rows_from:
            raise ValueError("a plan whose states would not name its artefact")
        shapes = [
            *self.training.shapes(self.model_schema).values(),
            *self.training.update_shapes(self.model_schema).values(),
        ]
        if max(map(math.prod, shapes), default=0) > _MAX_NUMBERS:
            # Where a plan is made, that is the job's fault; where it comes from elsewhere, the message's.
            raise MalformedMessage(
                f"a matrix of the state has more than {_MAX_NUMBERS:,} numbers",
                remedy="lower method.num_seeds or method.rank",
            )


def address_of(plan: Plan | None, obj: PublishedObject) -> str:
    """Where an object lies beside the broker, as a plan says; empty where it does not.

    Args:
        plan: The newest; None before there is one.
        obj: Of the plan, or of one before.
    """
    return "" if plan is None else plan.addresses.get(obj.manifest.sha256, "")


Position = tuple[int, int]
"""Where a replica stands: version, and merges that its base has seen."""


def objects_needed(plan: Plan, version: int, generation: int) -> tuple[StateObject, ...] | None:
    """What a node that holds a version must fetch, in the order it applies them: the way with the fewest bytes.

    Args:
        plan: The present plan.
        version: What the node holds; 0 for nothing learned.
        generation: Merges its base has seen.

    Returns:
        The objects, oldest first, empty if the node is up to date; None if the plan does not lead there from what it
        holds.
    """
    return cheapest_way(plan.objects, (plan.version, plan.training.generation), (version, generation))


def cheapest_way(objects: tuple[StateObject, ...], goal: Position, held: Position) -> tuple[StateObject, ...] | None:
    """The objects that lead from one position to another with the fewest bytes, then the fewest objects; None if none
    do.

    - A whole state needs the base of its generation. The checkpoint is the base of generation 0, so a whole state of
      that one can be taken from anywhere.
    - A difference needs the very version before it.
    - A snapshot needs nothing.
    - Who holds the last version of a generation merges it by itself and stands at the next.
    """
    last: dict[int, int] = {}
    for obj in objects:
        if obj.kind == "snapshot":
            last[obj.generation - 1] = obj.version
        elif obj.kind == "whole" and obj.generation < goal[1]:
            last[obj.generation] = max(obj.version, last.get(obj.generation, 0))

    def merged(position: Position) -> Position:
        version, generation = position
        return (version, generation + 1) if generation < goal[1] and last.get(generation) == version else position

    def leads_on(position: Position, obj: StateObject) -> bool:
        if obj.kind == "whole":
            return obj.generation in (0, position[1])
        return obj.kind == "snapshot" or position == (obj.base_version, obj.generation)

    ways: dict[Position, tuple[int, int, tuple[StateObject, ...]]] = {merged(held): (0, 0, ())}
    # In order of versions one pass finds the ways, and the next that there are no cheaper ones.
    better = True
    while better:
        better = False
        for obj in sorted(objects, key=lambda o: (o.generation, o.version)):
            cost, steps, way = min(
                (way for at, way in ways.items() if leads_on(at, obj)), key=lambda w: w[:2], default=(0, 0, None)
            )
            if way is None:
                continue
            found = cost + obj.manifest.size_bytes, steps + 1, (*way, obj)
            there = merged((obj.version, obj.generation))
            if there not in ways or found[:2] < ways[there][:2]:
                ways[there], better = found, True
    return ways[merged(goal)][2] if merged(goal) in ways else None


def published_digest(plan: Plan, version: int, generation: int) -> str | None:
    """The model digest that a replica at a position must have; None where the plan does not say."""
    if plan.start_digest and (version, generation) == (plan.version, plan.training.generation):
        return plan.start_digest
    return next((obj.digest for obj in plan.objects if (obj.version, obj.generation) == (version, generation)), None)
