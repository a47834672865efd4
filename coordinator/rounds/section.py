# SPDX-License-Identifier: Apache-2.0
"""`[round]` of a job file."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from fedcore.errors import ConfigError
from fedcore.round.staleness import StalenessFactor

__all__ = ["AggregationSection", "RoundSection"]

# So far behind, 1 / (1 + s) is known to 2 % in 16 bits.
_MOST_STALENESS = 1000


class AggregationSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[aggregation]`: a round's sum is cut into pieces, which other processes take (`fedkrso coordinator worker`). The
    numbers are integers, so the cut changes no bit."""

    pieces: int = 8
    """Into how many; twice as many as there are workers keep all of them at work."""
    least_numbers: int = 4_000_000
    """Of all updates together; a round of fewer is added up by the coordinator, which takes less than to hand it
    out."""

    def __post_init__(self) -> None:
        if not 1 <= self.pieces <= 1024:
            raise ConfigError(f"pieces is {self.pieces}, outside 1 to 1024", place="aggregation.pieces")
        if self.least_numbers < 0:
            raise ConfigError("least_numbers is negative", place="aggregation.least_numbers")


class RoundSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[round]`: how many rounds, with whom, and until when."""

    kind: Literal["synchronous", "buffered"] = "synchronous"
    """`synchronous`: a round ends when the updates of its cohort are in. `buffered` (FedBuff): as soon as `buffer_size`
    are, whichever versions they began from; who has delivered goes on from the newest one."""
    rounds: int = 6
    buffer_size: int = 0
    """Updates that make a version, where rounds are buffered."""
    max_staleness: int = 10
    """Versions by which an update may be behind in a buffered round; an older one is refused."""
    staleness_factor: StalenessFactor = "sqrt"
    """How much of an update counts that is s versions behind, in a buffered round: `sqrt` for 1 / sqrt(1 + s),
    `inverse` for 1 / (1 + s), `constant` for all of it."""
    min_nodes: int = 1
    """Nodes that must be online before the first round."""
    cohort: int = 0
    """Nodes invited to each round; 0 for all that are online."""
    order: Literal["drawn", "cycle"] = "drawn"
    """Who is invited, of more nodes than a round invites: a cohort drawn by the run's seed, or those that have waited
    longest, so that nodes take turns and who is not there is passed over; a round for the head is everybody's."""
    quorum: int = 1
    """Least number of updates that makes a round."""
    deadline_seconds: float = 3600.0
    """A round closes at the latest then, if it has its quorum."""
    deadline_slack: float = 10.0
    """Once all invited nodes have been timed, a round's deadline is this many times the slowest one's last round; 0:
    never earlier."""
    least_deadline_seconds: float = 60.0
    """A deadline from measured speed leaves at least this much: time for a node to start again."""
    over_selection: float = 0.0
    """Share of `cohort` that is invited beyond it; the round closes with the first `cohort` updates. Equal runs then
    differ."""
    finish_seconds: float = 120.0
    """After the last round, how long to wait for every node to report its digest."""
    keep_published: int = 2
    """Published states that stay retained at the broker."""
    keep_updates: int = 1
    """Closed rounds whose updates stay on the coordinator's disk; what they made is in the exact state."""
    average_last: int = 1
    """The run's last state is the mean of the states of so many last rounds, itself among them: steadier, where nodes
    have labels in unequal parts and each round undoes a part of the one before."""
    chunk_bytes: int = 262_144
    """Bytes in a transfer's chunk; the broker's own limit lowers it."""

    def __post_init__(self) -> None:
        for key in ("rounds", "min_nodes", "quorum", "deadline_seconds", "keep_published"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} is {getattr(self, key)}, it must be positive", place=f"round.{key}")
        for key in ("deadline_slack", "least_deadline_seconds", "over_selection", "keep_updates"):
            if not 0 <= getattr(self, key) < 1e9:
                raise ConfigError(f"{key} is {getattr(self, key)}, it must not be negative", place=f"round.{key}")
        if self.over_selection and not self.cohort:
            raise ConfigError("over_selection needs a cohort", place="round.over_selection", remedy="set round.cohort")
        if self.order == "cycle" and not self.cohort:
            words = "a cycle goes around in cohorts, and without one a round invites all nodes"
            raise ConfigError(words, place="round.order", remedy="set round.cohort")
        if not 1 <= self.average_last <= self.rounds:
            words = f"average_last is {self.average_last}, outside 1 to the run's {self.rounds} rounds"
            raise ConfigError(words, place="round.average_last")
        self._check_kind()
        if not 1024 <= self.chunk_bytes <= 1_000_000:
            raise ConfigError(f"chunk_bytes {self.chunk_bytes} is outside 1024 to 1000000", place="round.chunk_bytes")
        if self.cohort and self.quorum > self.cohort:
            raise ConfigError(f"a quorum of {self.quorum} cannot come from {self.cohort} nodes", place="round.quorum")
        if self.quorum > self.min_nodes:
            raise ConfigError(
                f"rounds begin with {self.min_nodes} nodes, and a quorum of {self.quorum} cannot come from them",
                place="round.min_nodes",
                remedy=f"set it to {self.quorum} or more, or lower round.quorum",
            )

    @property
    def invited(self) -> int:
        """Nodes that a round invites; 0 for all."""
        return math.ceil(self.cohort * (1 + self.over_selection))

    @property
    def first_updates(self) -> int:
        """Updates that end a round, whoever else is waited for; 0 where all are waited for."""
        if self.buffered:
            return self.buffer_size
        return self.cohort if self.over_selection > 0 else 0

    @property
    def buffered(self) -> bool:
        """Whether rounds are."""
        return self.kind == "buffered"

    def _check_kind(self) -> None:
        if not self.buffered:
            if self.buffer_size:
                remedy = 'write kind = "buffered", or leave it out'
                raise ConfigError("only buffered rounds have a buffer", place="round.buffer_size", remedy=remedy)
            return
        if self.buffer_size < 1:
            words, remedy = "it says of how many updates a version is made", "set it to less than there are nodes"
            raise ConfigError(f"buffer_size is {self.buffer_size}: {words}", place="round.buffer_size", remedy=remedy)
        if not 0 <= self.max_staleness <= _MOST_STALENESS:
            raise ConfigError(
                f"max_staleness is {self.max_staleness}, it must be from 0 to {_MOST_STALENESS}",
                place="round.max_staleness",
            )
        if self.quorum > self.buffer_size:
            raise ConfigError(
                f"a quorum of {self.quorum} cannot come from a buffer of {self.buffer_size}", place="round.quorum"
            )
        for key in ("cohort", "over_selection"):
            if getattr(self, key):
                words = "a buffered round invites everybody that is online, and ends with buffer_size updates"
                raise ConfigError(words, place=f"round.{key}", remedy="leave it out")
