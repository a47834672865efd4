# SPDX-License-Identifier: Apache-2.0
"""What a node can be doing, and which event may lead from where to where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from edge_client.agent.events import (
    Adopted,
    Event,
    Fetched,
    MayWork,
    MustRest,
    PlanArrived,
    RoomWanted,
    RunBegan,
    StateMeasured,
    UpdateGone,
    UpdateReady,
    WorkerFailed,
    WorkerReady,
)
from fedcore.round.plan import Plan, published_digest

__all__ = ["BUSY", "TRANSITIONS", "State", "has_room", "held_version", "update_waits"]

State = Literal["idle", "loading", "fetching", "adopting", "measuring", "training", "sending", "resting", "finished"]
"""What a node is doing."""
_States = frozenset[State]
_ALL: _States = frozenset(get_args(State))
BUSY: _States = frozenset({"loading", "adopting", "measuring", "training"})
"""The worker is at something that cannot be stopped half-way."""
TRANSITIONS: Mapping[type[Event], tuple[_States, _States]] = {
    PlanArrived: (_ALL - BUSY, _ALL - {"adopting"}),
    WorkerReady: (frozenset({"loading"}), _ALL - {"adopting", "resting"}),
    Fetched: (frozenset({"fetching"}), _ALL - {"resting"}),
    Adopted: (frozenset({"adopting", "fetching"}), _ALL - {"adopting", "resting"}),
    StateMeasured: (frozenset({"measuring"}), _ALL - {"adopting", "measuring", "resting"}),
    UpdateReady: (frozenset({"training", "resting"}), _ALL - {"adopting"}),
    UpdateGone: (frozenset({"sending"}), _ALL - {"adopting"}),
    WorkerFailed: (_ALL - {"resting"}, _ALL - {"adopting", "resting"}),
    RoomWanted: (frozenset(), frozenset()),
    RunBegan: (_ALL, frozenset({"idle", "resting"})),
    MustRest: (_ALL, frozenset({"resting"})),
    MayWork: (frozenset({"resting", "idle"}), _ALL - {"adopting", "resting"}),
}
"""For each event, from which states it leads on, and to which."""


def held_version(plan: Plan, version: int, generation: int, digest: str) -> tuple[int, str]:
    """The version that a replica can go on from, and why it is not the one that it holds.

    The whole state is one object whatever was missed, so the last common version is the base.

    Args:
        plan: The present one.
        version: What the replica holds.
        generation: Merges its base has seen.
        digest: Of its model.

    Returns:
        The version, and an empty reason; or 0 and the reason, if it is not the model that the run published.
    """
    published = published_digest(plan, version, generation)
    if published in (None, digest):
        return version, ""
    return 0, f"version {version} is {digest[:12]}, not the published {published[:12]}: resynchronising"


def has_room(loaded: Plan | None, plan: Plan) -> bool:
    """Whether a worker's memory was planned for what a round keeps.

    What gathers before other rounds keeps what those do, and sums beside; they have no room for these.

    Args:
        loaded: Of the round that the worker was loaded for.
        plan: Of the round.
    """
    if loaded is None:
        return False
    training = type(plan.training)
    return training in (type(loaded.training), type(loaded.training.learns))


def update_waits(plan: Plan, node: str, update_round: int, sent_round: int) -> bool:
    """Whether the update that lies on the disk is to be offered.

    Args:
        plan: The present one. Where rounds are buffered, updates for earlier ones count too, whoever this one invites.
        node: Whose update it is.
        update_round: For which it was trained; 0 for none.
        sent_round: The last round whose update was committed or refused.
    """
    return update_round > sent_round and plan.takes(update_round) and (plan.max_staleness > 0 or node in plan.cohort)
