# SPDX-License-Identifier: Apache-2.0
"""Updates on their way in: one receiver per node, chunks to disk, nothing kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedcore.wire.files import PartialFile
from fedcore.wire.messages import Ack, Chunk, Commit, Grant, Missing, Offer, Refuse
from fedcore.wire.transfer import Action, Receiver, Send, Store, Verify

__all__ = ["Inbox"]

Accept = Callable[[str, Offer, Path], str]
"""(node, offer, file) -> "" when the file is checked and in the ledger, else the reason it is refused."""
Reply = Callable[[str, Grant | Ack | Commit | Refuse], None]


class Inbox:
    """Receivers of a round.

    Args:
        accept: Called with a complete file whose SHA-256 is right.
        reply: Sends a message to a node.
        window: Chunks a node may have under way.
    """

    def __init__(self, accept: Accept, reply: Reply, *, window: int = 8) -> None:
        self._accept = accept
        self._reply = reply
        self._window = window
        self._open: dict[str, tuple[Offer, Receiver, PartialFile]] = {}

    def offer(self, node: str, offer: Offer, path: Path, now: float) -> None:
        """A node offers an object that is wanted at `path`. A new transfer of a node replaces its old one."""
        known = self._open.get(node)
        if known is None or known[0] != offer:
            if known is not None:
                known[2].close()
            part = PartialFile(path, offer.manifest)
            receiver = Receiver(offer.transfer, offer.manifest, part.bitmap.tobytes(), window=self._window)
            self._open[node] = offer, receiver, part
        self._run(node, self._open[node][1].handle(offer, now))

    def chunk(self, node: str, chunk: Chunk, now: float) -> None:
        """A chunk; one of an unknown transfer is ignored, the sender's next offer brings a grant."""
        if node in self._open:
            self._run(node, self._open[node][1].handle(chunk, now))

    def clear(self) -> None:
        """The round is over: forget unfinished transfers, their files stay for a while."""
        for _, _, part in self._open.values():
            part.close()
        self._open.clear()

    def _run(self, node: str, actions: list[Action]) -> None:
        offer, receiver, part = self._open[node]
        for action in actions:
            match action:
                case Store(index, data):
                    part.write(index, data)
                case Verify():
                    self._verify(node, offer, receiver, part)
                case Send(message) if not isinstance(message, Offer | Missing):
                    self._reply(node, message)

    def _verify(self, node: str, offer: Offer, receiver: Receiver, part: PartialFile) -> None:
        if not part.finish():
            self._run(node, receiver.verified(whole=False))
            return
        reason = self._accept(node, offer, part.path)
        if reason:
            part.path.unlink(missing_ok=True)
            del self._open[node]
            self._reply(node, Refuse(offer.transfer, reason))
            return
        self._run(node, receiver.verified(whole=True))
