# SPDX-License-Identifier: Apache-2.0
"""One sender's messages, numbered and signed; and a receiver's memory of the numbers."""

from __future__ import annotations

from fedcore.wire.codec import encode
from fedcore.wire.identity import SigningKey
from fedcore.wire.messages import Body, Envelope

__all__ = ["LARGEST_START", "Post", "same_start", "start_of"]

_START_BITS = 32
LARGEST_START = 2**31
"""More starts than a program has; beyond it, a number is nobody's."""


class Post:
    """Makes a sender's messages.

    The sequence number rises with every message, across restarts: it begins with a count of the sender's starts, which
    no clock has a part in. It protects what announces a state (plan, status) from being played again within a run;
    other runs of the same name have other ids. Transfers need no order, they are bound to their object's SHA-256.

    Args:
        run: The run's name.
        node: The sender; empty for the coordinator, whose messages name their addressee.
        key: Signs; None in a run without keys.
        start: Which start of this sender it is: one more than the last one.
        run_id: Of the run that the sender is in.

    Attributes:
        run_id: As above; a node that comes to another run sets it.
        correlation: A node's word of its own, in each of its messages.
    """

    def __init__(self, run: str, node: str, key: SigningKey | None, start: int, run_id: str = "") -> None:
        self._run, self._node, self._key = run, node, key
        self._sequence = start << _START_BITS
        self.run_id, self.correlation = run_id, ""

    def seal(
        self,
        body: Body,
        server_round: int = 0,
        *,
        to: str = "",
        expires_at: float | None = None,
        correlation: str = "",
    ) -> bytes:
        """A message's bytes: signed, where there is a key, and numbered."""
        self._sequence += 1
        envelope = Envelope(
            run=self._run,
            run_id=self.run_id,
            round=server_round,
            node=self._node or to,
            body=body,
            sequence=self._sequence,
            expires_at=expires_at,
            correlation=correlation or self.correlation,
        )
        return encode(envelope, self._key)

    def begin(self, start: int) -> None:
        """Number from another start on; one that is not above the present one changes nothing."""
        self._sequence = max(self._sequence, start << _START_BITS)


def start_of(sequence: int) -> int:
    """Which start of its sender a sequence number is of.

    Example:
        >>> start_of(3 << 32 | 7)
        3
    """
    return sequence >> _START_BITS


def same_start(first: int, second: int) -> bool:
    """Whether two sequence numbers are of one start of the sender."""
    return start_of(first) == start_of(second)
