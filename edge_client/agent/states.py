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
    StateMeasured,
    UpdateGone,
    UpdateReady,
    WorkerFailed,
    WorkerReady,
)

__all__ = ["BUSY", "TRANSITIONS", "State"]

State = Literal["idle", "loading", "fetching", "adopting", "measuring", "training", "sending", "resting", "finished"]
"""What a node is doing."""
_States = frozenset[State]
_ALL: _States = frozenset(get_args(State))
BUSY: _States = frozenset({"loading", "adopting", "measuring", "training"})
"""The worker is at something that cannot be stopped half-way."""
TRANSITIONS: Mapping[type[Event], tuple[_States, _States]] = {
    PlanArrived: (_ALL - BUSY, _ALL - {"adopting"}),
    WorkerReady: (frozenset({"loading"}), _ALL - {"loading", "adopting", "resting"}),
    Fetched: (frozenset({"fetching"}), _ALL - {"resting"}),
    Adopted: (frozenset({"adopting", "fetching"}), _ALL - {"adopting", "resting"}),
    StateMeasured: (frozenset({"measuring"}), _ALL - {"adopting", "measuring", "resting"}),
    UpdateReady: (frozenset({"training", "resting"}), _ALL - {"adopting"}),
    UpdateGone: (frozenset({"sending"}), _ALL - {"adopting"}),
    WorkerFailed: (_ALL - {"resting"}, _ALL - {"adopting", "resting"}),
    RoomWanted: (frozenset(), frozenset()),
    MustRest: (_ALL, frozenset({"resting"})),
    MayWork: (frozenset({"resting", "idle"}), _ALL - {"adopting", "resting"}),
}
"""For each event, from which states it leads on, and to which."""
