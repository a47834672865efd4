# SPDX-License-Identifier: Apache-2.0
"""Whether a job's rule means something for its method and its rounds."""

from __future__ import annotations

from typing import Final

from fedcore.errors import ConfigError
from fedcore.methods.interface import MethodSettings
from fedcore.numbers.rules import Mean, Rule

__all__ = ["require_combining"]

_FEWEST: Final = 3
"""Updates of which one may lie, for a rule that is not told how many do."""
_MOST_UPDATES: Final = 2**21
"""Beyond what buckets of the largest size and the most liars need."""


def require_combining(settings: MethodSettings, rule: Rule, name: str, quorum: int) -> None:
    """Check that a rule means something for a method, and for a round of so few updates.

    Args:
        settings: Of the method.
        rule: Of the job.
        name: The rule's.
        quorum: Least number of updates that makes a round.

    Raises:
        ConfigError: It does not.
    """
    if isinstance(rule, Mean):
        return
    if why := settings.not_by_coordinate:
        raise ConfigError(
            f"{name!r} means nothing for {settings.name}: {why}",
            place="safety.rule",
            remedy='use "mean", or another method',
        )
    if not rule.withstands(quorum):
        least = next((count for count in range(quorum, _MOST_UPDATES) if rule.withstands(count)), 3)
        raise ConfigError(
            f"{name!r} of {_counted(quorum, rule)} cannot tell which of them lies",
            place="round.quorum",
            remedy=f"set it and round.min_nodes to {least} or more",
        )


def _counted(quorum: int, rule: Rule) -> str:
    """What a rule that is too few has, and what beside the quorum makes it need more."""
    words = f"{quorum} updates"
    if rule.bucket > 1:
        words += f" in buckets of {rule.bucket}"
    return words if rule.withstands(_FEWEST * rule.bucket) else f"{words} with liars = {rule.liars}"
