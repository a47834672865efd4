# SPDX-License-Identifier: Apache-2.0
"""Whose messages count: signatures against the enrolment, which may change while a run goes on."""

from __future__ import annotations

from pathlib import Path

from fedcore.errors import ConfigError, ForgedMessage
from fedcore.wire.codec import decode
from fedcore.wire.identity import Enrolment, PublicKey
from fedcore.wire.messages import Envelope, Status
from fedcore.wire.post import same_start

__all__ = ["Senders"]


class Senders:
    """The nodes of a run as senders.

    Args:
        run: The run's name.
        enrolled: `enrolled.json`; None for a run without keys, in which every name is believed.

    Raises:
        ConfigError: The file is not an enrolment.
    """

    def __init__(self, run: str, enrolled: Path | None) -> None:
        self._run, self._path = run, enrolled
        self._stamp = self._stamp_of_file()
        self._enrolment = None if enrolled is None else Enrolment.load(enrolled)
        self._keys: dict[str, PublicKey] = {}
        self._last_status: dict[str, int] = {}

    @property
    def signed(self) -> bool:
        """Whether messages must be signed."""
        return self._enrolment is not None

    def revoked(self, node: str) -> bool:
        """Whether a node was enrolled and is not any more."""
        return self._enrolment is not None and node in self._enrolment.revoked

    def open(self, node: str, payload: bytes) -> Envelope:
        """A message that came on a topic of `node`.

        Raises:
            ForgedMessage: Not signed by that node, of another node or run, or an old status played again.
            MalformedMessage: Not a message.
        """
        envelope = decode(payload, self._key_of(node))
        if envelope.run != self._run or envelope.node != node:
            raise ForgedMessage(f"a message of {envelope.node!r} in run {envelope.run!r} on this topic")
        if isinstance(envelope.body, Status) and self.signed:
            self._check_order(node, envelope.sequence, lost=envelope.body.state == "lost")
        return envelope

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
