# SPDX-License-Identifier: Apache-2.0
"""`[safety]` of a job: what one participant's update may do to a round."""

from __future__ import annotations

from typing import Literal

import msgspec

from fedcore.errors import ConfigError
from fedcore.numbers.rules import Mean, Rule, rule_of

__all__ = ["SafetySection"]


class SafetySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[safety]`: what one participant's update may do to a round (`coordinator.rounds.policy`)."""

    norm_bound: float = 0.0
    """Largest norm of an update: the root of the sum of squares of all its numbers. 0 for none; a run's summary shows
    the norms."""
    norm_policy: Literal["clip", "refuse"] = "clip"
    """What happens to an update beyond the bound: scaled down to it, or refused."""
    norm_ratio: float = 10.0
    """An update counts with at most this multiple of the lower median of norms, of its round's updates and of those of
    the rounds before; what is beyond is scaled down to it, and its sender named. 0 for no limit."""
    max_share_ratio: float | None = None
    """A participant weighs at most this multiple of the lower median of the examples claimed in the round; 0 for no
    limit. Left out: one less than there are participants, at least 3 and at most 10, so that of four or more none
    outweighs all others together."""
    max_examples: int = 0
    """A participant weighs at most this many examples, whatever the others claim; 0 for no limit."""
    rule: str = "mean"
    """What becomes of the numbers that a round's updates say of one coordinate (`fedcore.numbers.rules`): `mean`,
    `trimmed-mean`, `median`; which updates count, by how far they are from each other (`fedcore.numbers.choosing`):
    `krum`, `multi-krum`, `geometric-median`; or a registered one. With all but `mean` participants count the same."""
    trim: float = 0.2
    """Part of the numbers that `trimmed-mean` leaves out at each end, below 0.5; one number at least."""
    liars: int = 1
    """Participants of a round that may lie, f, for `krum` and `multi-krum`: a round then needs 2 f + 3 updates."""
    bucket: int = 1
    """Updates that are put together, by lot, before the rule looks at them: it is then of the means of such buckets, of
    which each liar spoils one at most."""

    def __post_init__(self) -> None:
        if self.norm_bound != 0 and not 1e-6 <= self.norm_bound <= 1e9:
            raise ConfigError(
                f"norm_bound is {self.norm_bound}, it must be 0 or from 1e-6 to 1e9", place="safety.norm_bound"
            )
        for key in ("norm_ratio", "max_share_ratio"):
            value = getattr(self, key)
            if value not in (None, 0) and not 1 <= value <= 1e9:
                raise ConfigError(f"{key} is {value}, it must be 0 or from 1 to 1e9", place=f"safety.{key}")
        if self.max_examples < 0:
            raise ConfigError(f"max_examples is {self.max_examples}, it must be 0 or more", place="safety.max_examples")
        if not 0 < self.trim < 0.5:
            raise ConfigError(f"trim is {self.trim}, it must be above 0 and below 0.5", place="safety.trim")
        for key in ("liars", "bucket"):
            if not 1 <= getattr(self, key) <= 1000:
                raise ConfigError(f"{key} is {getattr(self, key)}, it must be 1 to 1000", place=f"safety.{key}")
        if self.bucket > 1 and isinstance(self.combining(), Mean):
            raise ConfigError(
                "the mean of buckets is the mean", place="safety.bucket", remedy="leave it out, or choose a safety.rule"
            )
        self.combining()

    def combining(self) -> Rule:
        """The rule, made."""
        return rule_of(self.rule, self.trim, liars=self.liars, bucket=self.bucket, place="safety.rule")
