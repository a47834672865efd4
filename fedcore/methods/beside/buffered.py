# SPDX-License-Identifier: Apache-2.0
"""Whether a job can have buffered rounds: what needs a round whose participants all began from one state is refused by
name before a run begins."""

from __future__ import annotations

from fedcore.errors import ConfigError
from fedcore.methods.interface import MethodSettings

__all__ = ["require_buffered"]


def require_buffered(settings: MethodSettings, rule: str, *, masked: bool, noise: bool, on_nodes: bool) -> None:
    """Check that what a job asks for means something where updates of one round began from several versions.

    Args:
        settings: Of the method.
        rule: The name of the rule in `[safety]`.
        masked: Whether updates are (`[secure_aggregation]`).
        noise: Whether there is any (`[privacy]`).
        on_nodes: Whether nodes measure states.

    Raises:
        ConfigError: It does not.
    """
    if why := settings.not_buffered:
        raise ConfigError(
            f"rounds of {settings.name} as it is here cannot be buffered: {why}",
            place="round.kind",
            remedy='use "fedkrso" with schedule "pool", or "fedavg"; or kind = "synchronous"',
        )
    if rule != "mean":
        raise ConfigError(
            f"{rule!r} compares updates that began from one state, and those of a buffered round did not",
            place="safety.rule",
            remedy='use "mean", or round.kind = "synchronous"',
        )
    remedy = 'leave the section out, or use round.kind = "synchronous"'
    if masked:
        raise ConfigError(
            "masks cancel in the sum of a cohort that is known before, and a buffered round has none",
            place="secure_aggregation",
            remedy=remedy,
        )
    if noise:
        raise ConfigError(
            "what noise is worth is counted for rounds whose cohort is known, and a buffered round has none",
            place="privacy",
            remedy=remedy,
        )
    if on_nodes:
        raise ConfigError(
            "nodes measure the state that a round starts from, and those of a buffered round start from several",
            place="evaluation.where",
            remedy='write "coordinator", with rows of its own, or use round.kind = "synchronous"',
        )
