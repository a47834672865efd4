# SPDX-License-Identifier: Apache-2.0
"""The job file: one run of federated fine-tuning, described in small sections."""

from __future__ import annotations

import re

import msgspec

from fedcore.errors import ConfigError
from fedcore.job import BrokerSection, DataSection, TaskSection
from fedcore.method import MethodSettings
from fedcore.types import BaseKind

__all__ = ["Job", "ModelSection", "RoundSection"]


class ModelSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[model]`: what is fine-tuned."""

    folder: str
    """A Hugging Face model folder, or `package:folder` for one that a Python package carries."""
    base: BaseKind = "int8"
    """How the frozen base is held."""
    trained_tensors: tuple[str, ...] = ()
    """Checkpoint tensors trained whole beside the task head, such as `*.LayerNorm.*`."""
    schema_file: str | None = None
    """Output of `fedkrso model describe`, for a coordinator without torch."""


class RoundSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[round]`: how many rounds, with whom, and until when."""

    rounds: int = 6
    min_nodes: int = 1
    """Nodes that must be online before the first round."""
    cohort: int = 0
    """Nodes invited to each round; 0 for all that are online."""
    quorum: int = 1
    """Least number of updates that makes a round."""
    deadline_seconds: float = 3600.0
    """A round closes at the latest then, if it has its quorum."""
    finish_seconds: float = 120.0
    """After the last round, how long to wait for every node to report its digest."""
    keep_outcomes: int = 2
    """Published outcomes that stay retained at the broker."""
    chunk_bytes: int = 262_144
    """Bytes in a transfer's chunk; the broker's own limit lowers it."""

    def __post_init__(self) -> None:
        for key in ("rounds", "min_nodes", "quorum", "deadline_seconds", "keep_outcomes"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} is {getattr(self, key)}, it must be positive", place=f"round.{key}")
        if not 1024 <= self.chunk_bytes <= 1_000_000:
            raise ConfigError(f"chunk_bytes {self.chunk_bytes} is outside 1024 to 1000000", place="round.chunk_bytes")
        invited = self.cohort or max(self.min_nodes, self.quorum)
        if self.quorum > invited:
            raise ConfigError(f"a quorum of {self.quorum} cannot come from {invited} nodes", place="round.quorum")


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A job file."""

    run: str
    """Name of the run: its folder, its topics and its digest depend on it."""
    seed: int = 0
    """Everything random in the run derives from it."""
    model: ModelSection
    task: TaskSection
    method: MethodSettings = MethodSettings()
    round: RoundSection = RoundSection()
    broker: BrokerSection
    evaluation: DataSection | None = None
    """Held-out data; without it no accuracy is measured."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.run):
            raise ConfigError(f"{self.run!r} cannot be a run's name", place="run", remedy="letters, digits, '.', '_' and '-', at most 64")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed {self.seed} is not an unsigned 64-bit integer", place="seed")
