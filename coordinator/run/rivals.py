# SPDX-License-Identifier: Apache-2.0
"""Plans on our run's topic that are not ours: what an earlier run of the same name left at the broker, or a second
coordinator at work."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.messages.publisher import Publisher
from fedcore.errors import WireError
from fedcore.round.plan import Plan
from fedcore.transport.base import Received
from fedcore.wire.codec import decode
from fedcore.wire.identity import PublicKey

__all__ = ["Rivals"]


class Rivals:
    """Looks at what comes on the plan's topic.

    Args:
        run_id: Ours.
        key: Ours; None in a run without keys.
        publisher: Clears what an earlier run left.
        note: Adds (kind, node, text) to the event log.
    """

    def __init__(
        self, run_id: str, key: PublicKey | None, publisher: Publisher, note: Callable[[str, str, str], None]
    ) -> None:
        self._run_id, self._key, self._publisher, self._note = run_id, key, publisher, note

    def heard(self, message: Received, *, announced: bool) -> None:
        """A plan came: also each of ours, as the broker gives it back.

        Args:
            message: As it came.
            announced: Our run has a plan already, which has taken the place of any other at the broker.
        """
        try:
            envelope = decode(message.payload, self._key)
        except WireError as error:
            if message.payload:
                self._note("refused", "", f"a plan that is not ours: {error.one_line()}")
            return
        if envelope.run_id == self._run_id or not isinstance(envelope.body, Plan):
            return
        words = f"another run of this name ({envelope.run_id[:12]})"
        if not message.retained:
            self._note("rival", "", f"a second coordinator leads {words}: stop one of them")
        elif not announced:
            self._note("rival", "", f"{words} left its plan at the broker, which is cleared")
            self._publisher.withdraw(envelope.body)
