# SPDX-License-Identifier: Apache-2.0
"""What an operator is told of a command, in the round machine's words. Pure functions."""

from __future__ import annotations

__all__ = ["excluded", "paused"]


def paused(phase: str, server_round: int) -> str:
    """What a pause keeps from happening.

    Args:
        phase: Of the run.
        server_round: The round that is open, or that would open next.

    Example:
        >>> paused("waiting", 3)
        'paused: round 3 does not open'
    """
    if phase == "waiting":
        return f"paused: round {server_round} does not open"
    return f"paused: round {server_round} goes on to its end, and no other opens"


def excluded(node: str, server_round: int, *, invited: bool, accepted: bool, left: int, quorum: int) -> str:
    """What becomes of a node that is taken out.

    Args:
        node: Who.
        server_round: The round that is open, or that would open next.
        invited: Whether a round is open that invites it.
        accepted: Whether its update of that round is in.
        left: Nodes online besides.
        quorum: Of a round.

    Example:
        >>> excluded("a", 3, invited=False, accepted=False, left=1, quorum=2)
        'a is excluded: it is not invited to further rounds; 1 nodes are left, and the quorum is 2'
    """
    if not invited:
        text = "it is not invited to further rounds"
    elif accepted:
        text = f"its update of round {server_round} counts, and it is not invited to further rounds"
    else:
        text = f"round {server_round} does not wait for it, and it is not invited to further rounds"
    short = "" if left >= quorum else f"; {left} nodes are left, and the quorum is {quorum}"
    return f"{node} is excluded: {text}{short}"
