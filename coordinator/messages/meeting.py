# SPDX-License-Identifier: Apache-2.0
"""Nodes that are not in this run yet: new ones, those that come from another run of the same name, and those whose
program does not read what ours writes."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.messages.publisher import Publisher
from coordinator.messages.senders import Senders
from coordinator.store.view import NodeView
from fedcore.errors import OtherVersion
from fedcore.fields.formats import SPOKEN, disagreement
from fedcore.wire.messages import Envelope, Status

__all__ = ["Meeting"]

_LEAST_PAUSE_SECONDS = 1.0


class Meeting:
    """Welcomes nodes, or says why they cannot take part.

    Args:
        publisher: Answers.
        senders: Knows how far each node has counted.
        seen: What is known of a node.
        note: Adds (kind, node, text) to the event log.
        steady: Seconds of a clock that never goes back.
    """

    def __init__(
        self,
        publisher: Publisher,
        senders: Senders,
        seen: Callable[[str], NodeView],
        note: Callable[[str, str, str], None],
        steady: Callable[[], float],
    ) -> None:
        self._publisher, self._senders, self._seen = publisher, senders, seen
        self._note, self._steady = note, steady
        self._answered: dict[str, tuple[float, str]] = {}
        self._ours: set[str] = set()

    def joined(self, node: str) -> None:
        """A node spoke of this run."""
        self._ours.add(node)

    def stranger(self, node: str, envelope: Envelope) -> None:
        """A node that speaks of no run yet, or of another one of this name: it hears of ours, and counts once it speaks
        of it.

        Args:
            node: Who.
            envelope: What it said, signed by it.
        """
        if isinstance(envelope.body, Status) and not envelope.body.online:
            # Left in the other run.
            return
        if node in self._ours and envelope.run_id:
            self._ours.discard(node)
            other = f"follows another run of this name ({envelope.run_id[:12]})"
            self._note("other_run", node, f"{other}: does a second coordinator lead one? stop all but one")
        if self._is_due(node, envelope.correlation):
            self._publisher.welcome(node, self._senders.last_start(node), envelope.correlation)

    def agrees(self, node: str, status: Status) -> bool:
        """Whether a node reads and writes what we do; if not, the operator and the node are told which to upgrade."""
        words = disagreement(status.formats, SPOKEN) if status.formats else ""
        if words:
            self._refuse(node, f"{words}{f' (it has {status.software})' if status.software else ''}")
        return not words

    def other_version(self, node: str, error: OtherVersion) -> None:
        """A message of another version of the protocol, signed by the node."""
        self._refuse(node, disagreement({**SPOKEN, "protocol": error.version}, SPOKEN))

    def _refuse(self, node: str, words: str) -> None:
        seen = self._seen(node)
        seen.online, seen.state, seen.trouble = False, "refused", words
        self._note("version", node, words)
        if self._is_due(node, ""):
            # It cannot read this either, and says so by name.
            self._publisher.welcome(node, 0, "")

    def _is_due(self, node: str, word: str) -> bool:
        now = self._steady()
        at, last = self._answered.get(node, (float("-inf"), ""))
        if now - at < _LEAST_PAUSE_SECONDS and word == last:
            return False
        self._answered[node] = now, word
        return True
