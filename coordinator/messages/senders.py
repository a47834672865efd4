# SPDX-License-Identifier: Apache-2.0
"""Whose messages count: signatures against the enrolment, which may change while a run goes on."""

from __future__ import annotations

from pathlib import Path

from fedcore.errors import ConfigError, ForgedMessage
from fedcore.wire.codec import decode
from fedcore.wire.identity import Enrolment, PublicKey
from fedcore.wire.messages import Envelope, Status, Telemetry
from fedcore.wire.post import LARGEST_START, same_start, start_of

__all__ = ["Senders"]


class Senders:
    """The nodes of a run as senders.

    Args:
        run: The run's name.
        enrolled: `enrolled.json`; None for a run without keys, in which every name is believed.

    Raises:
        ConfigError: The file is not an enrolment.

    Attributes:
        run_id: Tells the run from every other of its name; whoever makes it sets it.
    """

    def __init__(self, run: str, enrolled: Path | None) -> None:
        self.run_id = ""
        self._run, self._path = run, enrolled
        self._stamp = self._stamp_of_file()
        self._enrolment = None if enrolled is None else Enrolment.load(enrolled)
        self._keys: dict[str, PublicKey] = {}
        self._last_status: dict[str, int] = {}
        self._last_start: dict[str, int] = {}

    @property
    def signed(self) -> bool:
        """Whether messages must be signed."""
        return self._enrolment is not None

    def revoked(self, node: str) -> bool:
        """Whether a node was enrolled and is not any more."""
        return self._enrolment is not None and node in self._enrolment.revoked

    def open(self, node: str, payload: bytes) -> Envelope:
        """A message that came on a topic of `node`. What a node says about itself may be of another run of this name,
        and then does not count: it has to be told of this one (`coordinator.messages.meeting`).

        Raises:
            ForgedMessage: Not signed by that node, of another node or run, or an old status played again.
            OtherVersion: Signed by that node, and of another version of the protocol.
            MalformedMessage: Not a message.
        """
        envelope = decode(payload, self._key_of(node))
        if envelope.run != self._run or envelope.node != node:
            raise ForgedMessage(f"a message of {envelope.node!r} in run {envelope.run!r} on this topic")
        of_itself = isinstance(envelope.body, Status | Telemetry)
        if envelope.run_id != self.run_id:
            if not of_itself:
                raise ForgedMessage(f"a message of another run of this name ({envelope.run_id[:12] or 'none'})")
            if not self.is_last_will(node, envelope):
                return envelope
        if isinstance(envelope.body, Status) and self.signed:
            self._check_order(node, envelope.sequence, lost=envelope.body.state == "lost")
        if of_itself:
            self._last_start[node] = max(start_of(envelope.sequence), self._last_start.get(node, 0))
        return envelope

    def is_last_will(self, node: str, envelope: Envelope) -> bool:
        """Whether it is the last will of a node as it is now: that was signed when the node started, which may not have
        heard of this run by then."""
        lost = isinstance(envelope.body, Status) and envelope.body.state == "lost"
        return lost and start_of(envelope.sequence) == self._last_start.get(node)

    def last_start(self, node: str) -> int:
        """Which start of a node was heard last in this run; 0 for none."""
        return self._last_start.get(node, 0)

    def refresh(self) -> tuple[str, ...]:
        """Read the enrolment again if its file changed; the nodes revoked since.

        A file that cannot be read changes nothing, so that an edit half-way does not end a run.
        """
        stamp = self._stamp_of_file()
        if self._path is None or self._enrolment is None or stamp == self._stamp:
            return ()
        try:
            new = Enrolment.load(self._path)
        except ConfigError:
            return ()
        gone = tuple(sorted(set(new.revoked) - set(self._enrolment.revoked)))
        self._stamp, self._enrolment = stamp, new
        self._keys.clear()
        return gone

    def _key_of(self, node: str) -> PublicKey | None:
        if self._enrolment is None:
            return None
        if node not in self._keys:
            self._keys[node] = self._enrolment.key_of(node)
        return self._keys[node]

    def _check_order(self, node: str, sequence: int, *, lost: bool) -> None:
        last = self._last_status.get(node, 0)
        if start_of(sequence) > LARGEST_START:
            raise ForgedMessage("a status whose number jumps")
        # The last will was signed when the node started: it is right until the node starts again.
        if lost and same_start(sequence, last):
            return
        if sequence < last:
            raise ForgedMessage("an older status, played again")
        self._last_status[node] = sequence

    def _stamp_of_file(self) -> tuple[int, int] | None:
        try:
            found = None if self._path is None else self._path.stat()
        except OSError:
            return None
        return None if found is None else (found.st_mtime_ns, found.st_size)
