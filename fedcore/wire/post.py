# SPDX-License-Identifier: Apache-2.0
"""One sender's messages, numbered and signed; and a receiver's memory of the numbers."""

from __future__ import annotations

from fedcore.wire.codec import encode
from fedcore.wire.identity import SigningKey
from fedcore.wire.messages import Body, Envelope

__all__ = ["Post", "same_start", "start_number"]

_START_BITS = 32


def start_number(last: int, now: float) -> int:
    """A number for this start of a program, above that of every earlier start.

    Unix seconds, so that a program which lost its disk is still ahead; one more than the last where the clock is behind
    (boards without a battery start in 1970)."""
    return max(last + 1, int(now))


class Post:
    """Makes a sender's messages.

    The sequence number rises with every message, across restarts. It protects what announces a state (plan, status)
    from being played again; transfers need no order, they are bound to their object's SHA-256.

    Args:
        run: The run's name.
        node: The sender; empty for the coordinator, whose messages name their addressee.
        key: Signs; None in a run without keys.
        start: From `start_number`.
    """

    def __init__(self, run: str, node: str, key: SigningKey | None, start: int) -> None:
        self._run, self._node, self._key = run, node, key
        self._sequence = start << _START_BITS

    def seal(self, body: Body, server_round: int = 0, *, to: str = "", expires_at: float | None = None) -> bytes:
        """A message's bytes: signed, where there is a key, and numbered."""
        self._sequence += 1
        envelope = Envelope(
            run=self._run,
            round=server_round,
            node=self._node or to,
            body=body,
            sequence=self._sequence,
            expires_at=expires_at,
        )
        return encode(envelope, self._key)


def same_start(first: int, second: int) -> bool:
    """Whether two sequence numbers are of one start of the sender."""
    return first >> _START_BITS == second >> _START_BITS
