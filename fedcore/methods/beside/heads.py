# SPDX-License-Identifier: Apache-2.0
"""In which rounds beside the first a run has a head from sums: what `auto` and `end` come to, and how a run that is
gone on with ends. What would undo the last of them, or stand still beside it, is refused by name before it begins."""

from __future__ import annotations

from typing import Final

import msgspec

from fedcore.config.sections import HeadSection
from fedcore.errors import ConfigError

__all__ = ["longer_head", "require_heads_again", "settled_again", "shorter_head"]

_LEAST_ROUNDS: Final = 3
"""Of the method, before a head from sums ends a run that does not say so."""


def settled_again(head: HeadSection, rounds: int, *, buffered: bool, averaged: bool) -> HeadSection:
    """The same with the rounds that are a head's.

    Args:
        head: `[head]`, with its start settled.
        rounds: Of the run.
        buffered: Whether rounds are.
        averaged: Whether the run ends with the mean of several states.

    Example:
        >>> [settled_again(HeadSection(start="ridge"), rounds, buffered=False, averaged=False).again
        ...     for rounds in (4, 5)]
        [0, (5,)]
    """
    if isinstance(head.again, int | tuple):
        return head
    can = head.start == "ridge" and rounds >= _LEAST_ROUNDS + 2 and not buffered and not averaged
    return msgspec.structs.replace(head, again=(rounds,) if can or head.again == "end" else 0)


def longer_head(head: HeadSection, done: int, before: int, rounds: int) -> HeadSection:
    """What `[head]` says of a run that goes on: heads that were made stay, and one that was to end it ends it now.

    Args:
        head: Of the run.
        done: Rounds that there are.
        before: Rounds that it was to have.
        rounds: That it is to have.

    Example:
        >>> head = HeadSection(start="ridge", again=(6,))
        >>> [longer_head(head, done, 6, 9).again for done in (4, 6)]
        [(9,), (6, 9)]
    """
    if not isinstance(head.again, tuple) or not head.again:
        return head
    made = tuple(number for number in head.again if number < rounds and (number <= done or number < before))
    return msgspec.structs.replace(head, again=(*made, rounds))


def shorter_head(head: HeadSection, rounds: int) -> HeadSection:
    """What `[head]` says of a run that ends before its time: heads up to then stay, and its last round is one.

    Args:
        head: Of the run, settled.
        rounds: That it has now.

    Example:
        >>> [shorter_head(HeadSection(start="ridge", again=again), 7).again for again in ((9,), (4, 9), 2)]
        [(7,), (4, 7), (4, 7)]
    """
    made = (number for number in range(2, rounds) if head.is_head(number))
    return msgspec.structs.replace(head, again=(*made, rounds))


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
    if not head.comes_again:
        return
    if head.again == "end":
        if rounds < 3:
            words = f"the first round and the last are a head's, and of {rounds} none is left"
            raise ConfigError(words, place="round.rounds", remedy="write 3 or more")
    elif isinstance(head.again, tuple):
        if head.again[-1] != rounds:
            words = f"the last head is in round {head.again[-1]}, and the run has {rounds}"
            raise ConfigError(words, place="head.again", remedy='have the last one in the last round, or write "end"')
    elif not head.is_head(rounds) or rounds == 1:
        raise _not_ended(int(head.again), rounds)
    if buffered:
        words = "a head from sums is of one state, and updates of buffered rounds begin from several"
        raise ConfigError(words, place="head.again", remedy='leave it out, or use round.kind = "synchronous"')
    if averaged:
        words = "the mean of states with heads of different sums is none"
        raise ConfigError(words, place="round.average_last", remedy="leave it or head.again out")


def _not_ended(again: int, rounds: int) -> ConfigError:
    least = 1 + (again + 1) * max(1, (rounds - 1) // (again + 1))
    either = f"{least} or {least + again + 1}" if least < rounds else str(least)
    words = f"a head comes after {again} each, and {rounds} do not end with one"
    return ConfigError(words, place="round.rounds", remedy=f"write {either}")
