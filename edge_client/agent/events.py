# SPDX-License-Identifier: Apache-2.0
"""What a node's session is told, and what it says is to be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedcore.round.measurement import Measurement
from fedcore.round.plan import ArtefactObject, Plan, PublishedObject, StateObject

__all__ = [
    "Action",
    "AdoptObject",
    "Adopted",
    "Cause",
    "Configure",
    "Decline",
    "EndWork",
    "Event",
    "Fetch",
    "Fetched",
    "KeepArtefact",
    "LetGo",
    "MayWork",
    "MeasureState",
    "MustRest",
    "PlanArrived",
    "RoomWanted",
    "RunBegan",
    "SendUpdate",
    "StateMeasured",
    "TellStatus",
    "TrainRound",
    "UpdateGone",
    "UpdateReady",
    "WorkerFailed",
    "WorkerReady",
]

Cause = Literal["storage", "policy"]
"""Why a node rests: no room on the disk, or its owner's policy objects to work now."""


@dataclass(frozen=True)
class PlanArrived:
    """The coordinator announced a plan."""

    plan: Plan


@dataclass(frozen=True)
class WorkerReady:
    """The worker holds a replica."""

    version: int
    generation: int
    digest: str


@dataclass(frozen=True)
class Fetched:
    """An object is whole and on disk."""

    sha256: str


@dataclass(frozen=True)
class Adopted:
    """The worker's replica moved to a version."""

    version: int
    generation: int
    digest: str


@dataclass(frozen=True)
class StateMeasured:
    """The worker measured the state that a plan starts from; None: this node has no held-out rows."""

    version: int
    measurement: Measurement | None


@dataclass(frozen=True)
class UpdateReady:
    """The worker wrote the round's update; `worker_ended`: and was ended, to leave its memory to others while the
    update is sent."""

    round: int
    worker_ended: bool = False


@dataclass(frozen=True)
class UpdateGone:
    """The update was committed or refused."""

    round: int
    refused: str = ""


@dataclass(frozen=True)
class WorkerFailed:
    """A command failed or the worker died.

    `not_equal`: the replica was not the run's; it dropped what was wrong and loads again. `artefact_damaged`: the
    artefact on the disk was not the run's."""

    reason: str
    died: bool
    not_equal: bool = False
    artefact_damaged: bool = False


@dataclass(frozen=True)
class MustRest:
    """Nothing may be worked on for now. Said again with another reason, that one counts."""

    cause: Cause
    reason: str


@dataclass(frozen=True)
class MayWork:
    """A cause to rest is gone."""

    cause: Cause


@dataclass(frozen=True)
class RunBegan:
    """The node is in another run of the same name: nothing that it did or knows is of this one."""


@dataclass(frozen=True)
class RoomWanted:
    """The node's server waits for the memory of a worker that has nothing to do."""


Event = (
    PlanArrived
    | WorkerReady
    | Fetched
    | Adopted
    | StateMeasured
    | UpdateReady
    | UpdateGone
    | WorkerFailed
    | MustRest
    | MayWork
    | RoomWanted
    | RunBegan
)


@dataclass(frozen=True)
class Configure:
    """Start a worker if there is none, and load model and data."""

    plan: Plan


@dataclass(frozen=True)
class Fetch:
    """Get a published object."""

    obj: PublishedObject


@dataclass(frozen=True)
class KeepArtefact:
    """Put the fetched run artefact where workers read it."""

    obj: ArtefactObject


@dataclass(frozen=True)
class AdoptObject:
    """Have the worker take a fetched object."""

    obj: StateObject


@dataclass(frozen=True)
class MeasureState:
    """Have the worker measure the state that a plan starts from."""

    plan: Plan


@dataclass(frozen=True)
class TrainRound:
    """Have the worker train a round; the update carries what was measured."""

    plan: Plan
    measured: Measurement | None = None


@dataclass(frozen=True)
class SendUpdate:
    """Offer the round's update until it is committed or refused."""

    round: int


@dataclass(frozen=True)
class Decline:
    """Tell the coordinator that no update will come."""

    round: int
    reason: str


@dataclass(frozen=True)
class LetGo:
    """End the worker in peace and stop fetching. What is finished stays on disk; the worker's further words count no
    more."""


@dataclass(frozen=True)
class EndWork:
    """End the worker and stop fetching and sending; forget every word of the worker, and every update that waits: they
    are of another run."""


@dataclass(frozen=True)
class TellStatus:
    """Publish the node's status."""


Action = (
    Configure
    | Fetch
    | KeepArtefact
    | AdoptObject
    | MeasureState
    | TrainRound
    | SendUpdate
    | Decline
    | LetGo
    | EndWork
    | TellStatus
)
