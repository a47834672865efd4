# SPDX-License-Identifier: Apache-2.0
"""Rows of a ledger: a committed update, what a round came to, a line of the event log."""

from __future__ import annotations

import msgspec

from fedcore.config.privacy import Level
from fedcore.numbers.clip import Clip
from fedcore.round.header import UpdateHeader

__all__ = ["EventRow", "NodeScore", "NodesMeasured", "PrivacySpent", "RoundRow", "UpdateRow"]


class NodeScore(msgspec.Struct, frozen=True):
    """What one node measured of a published state on its held-out rows."""

    rows: int
    accuracy: float
    loss: float
    metrics: dict[str, float] = {}


class NodesMeasured(msgspec.Struct, frozen=True):
    """What nodes measured of a published state, each on held-out rows of its own: the mean over all of those rows, and
    every node's part."""

    rows: int
    """Held-out rows of all nodes."""
    accuracy: float
    loss: float
    metrics: dict[str, float]
    scores: dict[str, NodeScore]
    """By node."""
    capped: tuple[str, ...] = ()
    """Nodes whose rows, or whose numbers, did not count in full."""


class UpdateRow(msgspec.Struct, frozen=True):
    """A committed update: its transfer, its file within the run's folder, and what it says about itself."""

    transfer: str
    file: str
    size_bytes: int
    header: UpdateHeader
    norm: float | None = None
    """Of all its numbers; None in a ledger from before norms were kept."""
    clip: Clip | None = None
    """Scales it down when the round closes: chosen once, so that a resumed run scales alike."""
    into: int = 0
    """The round in which it counts, where rounds are buffered; 0: the one that it was trained for."""

    @property
    def counts_in(self) -> int:
        """The round in which it counts."""
        return self.into or self.header.round


class PrivacySpent(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has told until a round, of the node or the example that it has told most of."""

    level: Level
    epsilon: float
    delta: float
    target_epsilon: float = 0.0
    """0 for none."""
    clip: float
    noise_multiplier: float
    """The noise's standard deviation, in units of `clip`."""
    releases: int
    """Noisy sums so far in which one may have been."""
    sampled: float = 1.0
    """With which probability it was in each, by a secret coin."""

    def words(self) -> str:
        """In a line.

        Example:
            >>> PrivacySpent(
            ...     level="node", epsilon=2.3456, delta=1e-3, clip=0.5, noise_multiplier=4.0, releases=6
            ... ).words()
            'each node: epsilon 2.35 spent at delta 0.001, by noise of 4 times a clip of 0.5'
        """
        of = f" of {self.target_epsilon:g}" if self.target_epsilon else ""
        return (
            f"each {self.level}: epsilon {self.epsilon:.3g}{of} spent at delta {self.delta:g}, "
            f"by noise of {self.noise_multiplier:.3g} times a clip of {self.clip:g}"
        )


class RoundRow(msgspec.Struct, frozen=True):
    """What a round came to. Accuracy and loss are of the published state on held-out data; None where it is not
    measured."""

    round: int
    participants: tuple[str, ...]
    uplink_bytes: int
    downlink_bytes: int
    seconds: float
    train_loss: float
    accuracy: float | None = None
    loss: float | None = None
    metrics: dict[str, float] = {}
    norms: dict[str, float] = {}
    """Of the updates as they came, by participant."""
    clipped: dict[str, float] = {}
    """The factor, for participants whose update was scaled down."""
    capped: dict[str, tuple[int, int]] = {}
    """Examples claimed and weight given, for participants whose claim did not count in full."""
    stale: dict[str, tuple[int, float]] = {}
    """Versions behind and the factor by which it counts, for participants whose update began from an older version than
    the round did."""
    nodes: NodesMeasured | None = None
    """What nodes measured of the published state on rows of their own; known one round later, or at the run's end."""
    privacy: PrivacySpent | None = None
    """Up to and with this round; None in a run that promises nothing."""


class EventRow(msgspec.Struct, frozen=True):
    """A line of the event log."""

    number: int
    """Rises from line to line, also over a resume."""
    at: float
    """Unix seconds."""
    kind: str
    node: str
    """Empty where it is about no node."""
    round: int
    """0 where it is not known."""
    text: str
