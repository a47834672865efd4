# SPDX-License-Identifier: Apache-2.0
"""`[channel]` of a job: local training as if each text's embedding had come over a radio channel.

What is simulated is split learning over the air (R-SFLLM, arXiv 2407.11654): a device sends embeddings, a jammer
disturbs them, and whatever comes after them learns from what arrived. Only training goes over the channel: whatever is
measured, published or exported is of a model without noise in it. The bytes between node and coordinator have nothing
to do with it."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from fedcore.errors import ConfigError

__all__ = ["LARGEST_ERROR", "MOST_USERS", "ChannelSection", "Jammer", "Scenario"]

LARGEST_ERROR: Final = 1e6
MOST_USERS: Final = 16
"""Of a simulated channel: each has four of its 64 subcarriers then."""
_MOST_DB: Final = 60.0

Scenario = Literal["undisturbed", "jammed", "protected"]
"""No jammer; a jammer and a receiver that does not know of it; a receiver that has sensed where the jammer is."""
Jammer = Literal["barrage", "focused"]
"""Power over all directions alike; all of it in the direction that reaches the receiver best."""


class ChannelSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[channel]`: how much of an embedding is lost on its way, in each round and for each node.

    Example:
        >>> ChannelSection(scenario="protected").users
        3
        >>> ChannelSection(scenario="jammed", error=0.1)
        Traceback (most recent call last):
        fedcore.errors.ConfigError: channel: a scenario says how large the error is (keep one of scenario and error)
    """

    scenario: Scenario | None = None
    """Antennas are simulated (`coordinator.channel`), and each node has the error of a user's place among them, another
    one each round."""
    error: float | None = None
    """Instead of a scenario: the mean squared error of a number, in units of an embedding's mean square; the same for
    all nodes and rounds."""
    users: int = 3
    """Devices that share the simulated channel. A node takes one of their places by lot each round."""
    user_db: float = 5.0
    """Power of a user, in decibels of one unit."""
    jammer_db: float = 30.0
    """Power of the jammer."""
    noise_db: float = -3.0
    """Power of the noise at each antenna of the receiver."""
    jammer: Jammer = "barrage"
    """Where the jammer sends its power."""

    def __post_init__(self) -> None:
        if self.scenario is None and self.error is None:
            raise ConfigError(
                "nothing says how large the error is",
                place="channel",
                remedy='write scenario = "jammed", or error = 0.1',
            )
        if self.error is not None:
            self._check_error(self.error)
        if not 1 <= self.users <= MOST_USERS:
            raise ConfigError(f"users is {self.users}, it must be 1 to {MOST_USERS}", place="channel.users")
        for key in ("user_db", "jammer_db", "noise_db"):
            if not abs(getattr(self, key)) <= _MOST_DB:
                raise ConfigError(
                    f"{key} is {getattr(self, key):g}, it must be from {-_MOST_DB:g} to {_MOST_DB:g}",
                    place=f"channel.{key}",
                )

    def _check_error(self, error: float) -> None:
        if self.scenario is not None:
            raise ConfigError(
                "a scenario says how large the error is", place="channel", remedy="keep one of scenario and error"
            )
        if not 0 < error <= LARGEST_ERROR:
            raise ConfigError(
                f"error is {error:g}, it must be above 0 and up to {LARGEST_ERROR:,.0f}", place="channel.error"
            )
        for key in ("users", "user_db", "jammer_db", "noise_db", "jammer"):
            if getattr(self, key) != _DEFAULTS[key]:
                raise ConfigError(
                    f"{key} is of a simulated channel",
                    place=f"channel.{key}",
                    remedy="leave it out, or leave error out",
                )


_DEFAULTS: Final = {field.name: field.default for field in msgspec.structs.fields(ChannelSection)}
