# SPDX-License-Identifier: Apache-2.0
"""Whether a run can have heads from sums again between its method's rounds: what would undo the last of them, or stand
still beside it, is refused by name before it begins."""

from __future__ import annotations

from fedcore.config.sections import HeadSection
from fedcore.errors import ConfigError

__all__ = ["require_heads_again"]


def require_heads_again(head: HeadSection, rounds: int, *, buffered: bool, averaged: bool) -> None:
    """Check that a run ends with a head from sums, if it has more than the first.

    Args:
        head: `[head]`.
        rounds: Of the run.
        buffered: Whether rounds are.
        averaged: Whether the run ends with the mean of several states.

    Example:
        >>> require_heads_again(HeadSection(start="ridge", again=4), 11, buffered=False, averaged=False)
        >>> require_heads_again(HeadSection(start="ridge", again=4), 12, buffered=False, averaged=False)
        Traceback (most recent call last):
        ...
        fedcore.errors.ConfigError: round.rounds: a head comes after 4 each, and 12 do not end with one (write 11 or 16)

    Raises:
        ConfigError: It does not, or has something beside that a head between rounds does not go with.
    """
    if not head.again:
        return
    if not head.is_head(rounds) or rounds == 1:
        least = 1 + (head.again + 1) * max(1, (rounds - 1) // (head.again + 1))
        either = f"{least} or {least + head.again + 1}" if least < rounds else str(least)
        raise ConfigError(
            f"a head comes after {head.again} each, and {rounds} do not end with one",
            place="round.rounds",
            remedy=f"write {either}",
        )
    if buffered:
        words = "a head from sums is of one state, and updates of buffered rounds begin from several"
        raise ConfigError(words, place="head.again", remedy='leave it out, or use round.kind = "synchronous"')
    if averaged:
        words = "the mean of states with heads of different sums is none"
        raise ConfigError(words, place="round.average_last", remedy="leave it or head.again out")
