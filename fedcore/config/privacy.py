# SPDX-License-Identifier: Apache-2.0
"""`[privacy]` of a job: what nobody shall be able to tell from what a run publishes, or from what a node sends.

The two levels protect different things. With `[privacy.node]` the published states do not tell whether all the text of
one node had any part in them; the coordinator, which adds the noise, sees updates as they are. With
`[privacy.example]` an update does not tell whether one text of its node had any part in it; the noise is added on the
node, and not even the coordinator has to be trusted.

Two runs count as neighbours where in one of them a node (an example) teaches nothing: its contribution is zero. That it
is there is no secret: plans name a round's nodes, and updates say how many examples they are of."""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec

from fedcore.errors import ConfigError

__all__ = ["ExamplePrivacy", "Level", "NodePrivacy", "Noise", "PrivacySection", "require_small"]

Level = Literal["node", "example"]
_LEAST_CLIP: Final = 1e-6
_MOST_CLIP: Final = 128.0


class Noise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What both levels say."""

    clip: float
    """Largest norm: of an update, or of an example's gradient. What is larger is scaled down to it."""
    delta: float
    """Chance that the promise of epsilon does not hold; far below one in as many as are protected."""
    noise_multiplier: float = 0.0
    """The noise's standard deviation, in units of `clip`. Left out: found from `target_epsilon` and all rounds."""
    target_epsilon: float = 0.0
    """What may be spent: the run ends before a round that would go beyond. Left out: as much as the rounds spend."""

    def _check(self, level: Level) -> None:
        place = f"privacy.{level}"
        if not _LEAST_CLIP <= self.clip <= _MOST_CLIP:
            raise ConfigError(
                f"clip is {self.clip:g}, it must be from {_LEAST_CLIP:g} to {_MOST_CLIP:g}", place=f"{place}.clip"
            )
        if not 0 < self.delta < 0.5:
            raise ConfigError(f"delta is {self.delta:g}, it must be above 0 and below 0.5", place=f"{place}.delta")
        if not self.noise_multiplier and not self.target_epsilon:
            raise ConfigError(
                "neither noise_multiplier nor target_epsilon says how much noise there is to be",
                place=place,
                remedy="write one of them, such as target_epsilon = 8.0",
            )
        if self.noise_multiplier and not 0.1 <= self.noise_multiplier <= 1000:
            raise ConfigError(
                f"noise_multiplier is {self.noise_multiplier:g}, it must be from 0.1 to 1000",
                place=f"{place}.noise_multiplier",
            )
        if self.target_epsilon and not 0 < self.target_epsilon <= 1000:
            raise ConfigError(
                f"target_epsilon is {self.target_epsilon:g}, it must be above 0 and at most 1000",
                place=f"{place}.target_epsilon",
            )


class NodePrivacy(Noise, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[privacy.node]`: published states hide each node's whole part (DP-FedAvg, McMahan et al., arXiv 1710.06963).

    Example:
        >>> NodePrivacy(clip=0.5, delta=1e-3, noise_multiplier=1.0).clip
        0.5
    """

    def __post_init__(self) -> None:
        self._check("node")


class ExamplePrivacy(Noise, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[privacy.example]`: updates hide each example's part (DP-SGD, Abadi et al., arXiv 1607.00133)."""

    least_examples: int
    """A node with fewer examples takes part in no round: the fewer there are, the likelier each is in a batch, and the
    more is told of it. Noise and epsilon are those of a node with so many."""

    def __post_init__(self) -> None:
        self._check("example")
        if not 1 <= self.least_examples < 2**31:
            raise ConfigError(
                f"least_examples is {self.least_examples}, it must be positive", place="privacy.example.least_examples"
            )
        require_small(self.delta, self.least_examples, "example", "examples on a node")


class PrivacySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[privacy]`: one of the levels, or neither."""

    node: NodePrivacy | None = None
    example: ExamplePrivacy | None = None

    def __post_init__(self) -> None:
        if self.node is not None and self.example is not None:
            raise ConfigError(
                "noise on nodes and noise on their sum",
                place="privacy.example",
                remedy="keep one of privacy.node and privacy.example",
            )

    @property
    def noise(self) -> Noise | None:
        """Of the level that there is."""
        return self.node or self.example

    @property
    def level(self) -> Level:
        """Which that is; it means nothing where there is none."""
        return "example" if self.node is None else "node"


def require_small(delta: float, protected: int, level: Level, words: str) -> None:
    """Check that delta is below one in as many as there are: at one in n, a run may publish one of them whole.

    Args:
        delta: Of the job.
        protected: How many there are.
        level: Of the job.
        words: What there are so many of.

    Raises:
        ConfigError: It is not.
    """
    if delta * protected >= 1:
        raise ConfigError(
            f"delta is {delta:g}: with {protected:,} {words} one of them might be told whole, "
            "and the promise would still hold",
            place=f"privacy.{level}.delta",
            remedy=f"write less than {1 / protected:.2g}, such as {10 ** math.floor(-math.log10(protected) - 1):.0e}",
        )
