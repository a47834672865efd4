# SPDX-License-Identifier: Apache-2.0
"""`[secure_aggregation]` of a job: the coordinator learns the sum of a round's updates, and none of them."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from fedcore.errors import ConfigError
from fedcore.methods.interface import MethodSettings
from fedcore.privacy.shares import spread
from fedcore.round.secure import FRACTION_BITS, MOST_WEIGHT, SecureRound, lane_bytes_for

__all__ = ["LEAST_QUORUM", "SecureSection", "require_secure"]

LEAST_QUORUM = 3
"""Of two updates, each node knows the other's from the sum."""
_HEAD_BITS = 20
"""Of second moments of features: with fewer, of small features little is left."""


class SecureSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[secure_aggregation]`: where the section is, the run has it; all of its keys may be left out.

    Example:
        >>> SecureSection(threshold=0.5).asked(4, 0.0, 0, "uniform").lane_bytes
        6
    """

    threshold: float = 2 / 3
    """More than this share of the nodes that hold a node's secrets must be there at a round's end, or the round comes
    to nothing: 0.5 or more, below 1. The smaller it is, the more nodes may be lost; the larger,
    the more may collude."""
    neighbours: int = 0
    """Nodes mask with at least so many others. 0: as many as their number asks for (docs/security.md)."""
    fraction_bits: int = FRACTION_BITS
    """Numbers are rounded to multiples of 2**-fraction_bits before they are masked. With 32 nothing is lost and the
    digest is that of the run without; fewer make updates smaller."""
    wait_seconds: float = 60.0
    """For how long nodes that do not answer are waited for: with their keys, with their shares, and at the end."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.threshold < 1:
            raise ConfigError(
                f"threshold is {self.threshold:g}, it must be from 0.5 to below 1",
                place="secure_aggregation.threshold",
            )
        if not 8 <= self.fraction_bits <= FRACTION_BITS:
            raise ConfigError(
                f"fraction_bits is {self.fraction_bits}, it must be from 8 to {FRACTION_BITS}",
                place="secure_aggregation.fraction_bits",
            )
        if not 0 <= self.neighbours <= 10_000:
            raise ConfigError(
                f"neighbours is {self.neighbours}, it must be from 0 to 10000", place="secure_aggregation.neighbours"
            )
        if not 1 <= self.wait_seconds <= 86_400:
            raise ConfigError(
                f"wait_seconds is {self.wait_seconds:g}, it must be from 1 to 86400",
                place="secure_aggregation.wait_seconds",
            )

    @property
    def holds_moments(self) -> bool:
        """Whether a head from sums is what it is without masks, or nearly."""
        return self.fraction_bits >= _HEAD_BITS

    def asked(
        self,
        nodes: int,
        norm_bound: float,
        max_examples: int,
        share: Literal["examples", "uniform"],
        noise: tuple[int, int] = (0, 0),
    ) -> SecureRound:
        """What a plan says of it.

        Args:
            nodes: How many are invited.
            norm_bound: Of `[safety]`.
            max_examples: Of `[safety]`.
            share: Of the method.
            noise: Where nodes add some: with how many updates a round is opened at least, and sigma of each node's.
        """
        least, sigma = noise
        most = min(max_examples or MOST_WEIGHT, MOST_WEIGHT // max(1, nodes))
        # Noise hides one of as many as there are: all count the same.
        weight = 1 if share == "uniform" or least else most
        return SecureRound(
            lane_bytes=lane_bytes_for(max(1, nodes), self.fraction_bits, norm_bound, weight, spread(sigma, nodes)),
            fraction_bits=self.fraction_bits,
            norm_bound=norm_bound,
            most_examples=most,
            threshold=self.threshold,
            neighbours=self.neighbours,
            least=least,
        )


class _Safety(Protocol):
    """Of `[safety]`, what secure aggregation has something to say about."""

    @property
    def rule(self) -> str:
        """What becomes of the numbers that updates say of one coordinate."""
        ...

    @property
    def norm_policy(self) -> str:
        """What becomes of an update beyond the norm bound."""
        ...

    @property
    def norm_ratio(self) -> float:
        """Beyond so many times the median of norms, an update is scaled down."""
        ...

    @property
    def max_share_ratio(self) -> float | None:
        """A node weighs at most so many times the median of claims."""
        ...


class _Round(Protocol):
    """Of `[round]`, the same."""

    @property
    def quorum(self) -> int:
        """Least number of updates that makes a round."""
        ...

    @property
    def rounds(self) -> int:
        """How many there are."""
        ...


def require_secure(
    section: SecureSection, settings: MethodSettings, safety: _Safety, rounds: _Round, head: str, *, on_nodes: bool
) -> None:
    """Check that a job with secure aggregation asks for nothing for which somebody has to see a node's update.

    Args:
        section: Of the job.
        settings: Of the method.
        safety: Of the job.
        rounds: Of the job.
        head: What a new head begins with.
        on_nodes: Nodes measure states, each by name.

    Raises:
        ConfigError: It does.
    """
    why = "with [secure_aggregation] nobody sees one node's update"
    if not settings.sums_alone:
        raise ConfigError(
            f"{settings.name} as it is here needs more of updates than their sum",
            place="method.name",
            remedy='use "fedkrso" (with moments "reset" or "carried"), "fedavg" or "fed3r", or leave '
            "[secure_aggregation] out",
        )
    if safety.rule != "mean":
        raise ConfigError(f"{safety.rule!r} compares updates: {why}", place="safety.rule", remedy='use "mean"')
    for name in ("norm_ratio", "max_share_ratio"):
        if getattr(safety, name) != 0:
            raise ConfigError(
                f"{name} compares nodes: {why}",
                place=f"safety.{name}",
                remedy=f"write {name} = 0, to show that you know",
            )
    if safety.norm_policy != "clip":
        raise ConfigError(f"a norm is refused that nobody sees: {why}", place="safety.norm_policy", remedy='use "clip"')
    if rounds.quorum < LEAST_QUORUM:
        raise ConfigError(
            f"a sum of {rounds.quorum} updates tells one node the other's",
            place="round.quorum",
            remedy=f"set it and round.min_nodes to {LEAST_QUORUM} or more",
        )
    if on_nodes:
        raise ConfigError(
            "what nodes measure says something of each by name", place="evaluation.where", remedy='use "coordinator"'
        )
    if (head == "ridge" or settings.told_once) and not section.holds_moments:
        raise ConfigError(
            f"second moments of features are too small for {section.fraction_bits} bits behind the point",
            place="secure_aggregation.fraction_bits",
            remedy=f"raise it to {_HEAD_BITS} or more"
            + ("" if settings.told_once else ', or write start = "random" in [head]'),
        )
    if settings.told_once and rounds.rounds > 1:
        raise ConfigError(
            "a node's sums are the same in each round: two rounds with one node more or less tell that node's",
            place="round.rounds",
            remedy="write rounds = 1: the second comes to the head of the first",
        )
