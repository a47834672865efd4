# SPDX-License-Identifier: Apache-2.0
"""What a federated method is, seen from the coordinator: settings, and a server half of pure functions over explicit state.

A method has two halves. The server half (here and in `fedcore.methods`) decides what a round's plan says and how updates become
the next state; the client half (`edge_client.worker`) trains and writes an update. Between them lie only files and the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from fedcore.errors import ConfigError
from fedcore.plan import Plan, Training
from fedcore.schema import ModelSchema
from fedcore.state import ExactState
from fedcore.types import Bits, Order
from fedcore.update import CheckedUpdate, WeightedUpdate

__all__ = ["MethodSettings", "ServerHalf"]


class MethodSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[method]`: the federated method and its numbers."""

    name: str = "fedkrso"
    rank: int = 8
    """Rows of each projection, r."""
    min_rank: int | None = None
    """Smallest rank that a device may train instead; by default the full rank."""
    num_seeds: int = 5
    """Subspaces in the pool, K."""
    schedule: Literal["pool", "fresh"] = "pool"
    """`pool` keeps the seeds; `fresh` draws new ones every `refresh_every` rounds and folds the old into the base."""
    refresh_every: int = 1
    """Rounds that seeds last with `fresh`."""
    order: Order = "cycle"
    """`cycle`: without replacement; `uniform`: with replacement, the paper's rule."""
    interval_steps: int = 10
    """Optimiser steps in one subspace, J."""
    steps: int = 40
    """Optimiser steps in a round, T: a multiple of `interval_steps`."""
    batch_size: int = 16
    """Examples in an optimiser step."""
    learning_rate: float = 1e-3
    tensor_learning_rate: float = 2e-3
    """For tensors trained whole, such as the task head."""
    bits: Bits = 8
    """Bits of an accumulator's numbers on the wire: 4, 8 or 16."""
    share: Literal["examples", "uniform"] = "examples"
    """A participant's part in the average."""

    def __post_init__(self) -> None:
        positive = (
            "rank",
            "num_seeds",
            "refresh_every",
            "interval_steps",
            "steps",
            "batch_size",
            "learning_rate",
            "tensor_learning_rate",
        )
        for key in positive:
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} is {getattr(self, key)}, it must be positive", place=f"method.{key}")
        # What a plan can say (fedcore.plan).
        for key, most in (("rank", 4096), ("num_seeds", 1024), ("steps", 2**31 - 1), ("batch_size", 2**31 - 1), ("learning_rate", 1e6)):
            if getattr(self, key) > most:
                raise ConfigError(f"{key} is {getattr(self, key)}, more than {most:,}", place=f"method.{key}")
        if self.steps % self.interval_steps:
            raise ConfigError(
                f"{self.steps} steps are not a whole number of intervals of {self.interval_steps}",
                place="method.steps",
                remedy=f"use {self.steps // self.interval_steps * self.interval_steps or self.interval_steps}",
            )
        if self.min_rank is not None and not 1 <= self.min_rank <= self.rank:
            raise ConfigError(f"min_rank {self.min_rank} is outside 1 to rank {self.rank}", place="method.min_rank")

    @property
    def folds_every(self) -> int:
        """Rounds between folds; 0 for never."""
        return self.refresh_every if self.schedule == "fresh" else 0


class ServerHalf(Protocol):
    """A method at the coordinator. Pure: state goes in, state comes out; files are read, never kept open."""

    def __init__(self, settings: MethodSettings, schema: ModelSchema) -> None: ...

    def start(self, run_seed: int) -> ExactState:
        """The state before round 1."""
        ...

    def training(self, state: ExactState, server_round: int, run_seed: int) -> Training:
        """What the plan of a round says; its seeds MUST depend on nothing but the arguments."""
        ...

    def open(self, state: ExactState, training: Training) -> ExactState:
        """The state the round starts from: the same, or refreshed after a fold."""
        ...

    def shapes(self, training: Training) -> Mapping[str, tuple[int, int]]:
        """(m, c) of each entry of the state."""
        ...

    def check(self, path: Path, plan: Plan, run: str, node: str) -> CheckedUpdate:
        """Check a received update whole. MUST raise `UpdateRefused` on anything that may not enter the sum."""
        ...

    def aggregate(self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate]) -> ExactState:
        """The next state, by the weights and clips given. MUST NOT depend on the order of the updates."""
        ...
