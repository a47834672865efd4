# SPDX-License-Identifier: Apache-2.0
"""A node's messages with its fleet: what it says is numbered and signed, what it hears counts only from the server, and
never an older notice after a newer one."""

from __future__ import annotations

from pathlib import Path

from edge_client.agent.messages import Keys
from edge_client.node import Node
from edge_client.owner.accepting import RELEASE_FILE
from fedcore.errors import ForgedMessage
from fedcore.system.durable import DurableNumber, write_durably
from fedcore.transport.base import Message
from fedcore.wire.fleet import Candidate, FleetPost, Notice, opened
from fedcore.wire.messages import Topics

__all__ = ["Speaking"]


class Speaking:
    """Of one node.

    Args:
        node: Its file.
        keys: What it signs and believes by.

    Attributes:
        wanted: Version and hash that the server wants to run here; empty for none, None before a notice.
        number: Of the newest notice that counted; kept on the disk where notices are signed. Whoever can write an
            unsigned one could otherwise silence the fleet for good.
    """

    def __init__(self, node: Node, keys: Keys) -> None:
        folder = Path(node.folder)
        # Whoever may change what runs here reads it, and looks at the signature again.
        self._release_file = folder / RELEASE_FILE
        self._accepts = node.accept.releases and keys.coordinator is not None
        self.wanted: str | None = None
        self._node = node.node
        start, self._kept = DurableNumber(folder / "fleet-start"), DurableNumber(folder / "fleet-notice")
        start.set(start.value + 1)
        self._fleet, self._server = node.fleet, keys.coordinator
        self.number = self._kept.value if self._server is not None else 0
        self._topic = Topics(node.fleet).status(node.node)
        self._post = FleetPost(node.fleet, node.node, keys.own, start.value)

    def said(self, candidate: Candidate) -> Message:
        """What the node tells, retained."""
        return Message(self._topic, self._post.seal(candidate), retain=True)

    def will(self) -> Message:
        """What the broker says for a node whose link was lost while it waited for a run; its last word as it leaves."""
        return self.said(Candidate(online=False, heard=self.number))

    def notice(self, payload: bytes) -> tuple[int, Notice]:
        """A notice and its number.

        Raises:
            ForgedMessage: Not the server's, of another fleet, or played again.
            MalformedMessage: Not a message.
        """
        envelope = opened(payload, self._fleet, self._server)
        if not isinstance(envelope.body, Notice):
            raise ForgedMessage(f"no notice of fleet {self._fleet}")
        if envelope.number < self.number:
            # Also what a broker kept for this node's session while it was at another one.
            raise ForgedMessage("an older notice, played again")
        if self._server is not None and envelope.number > self._kept.value:
            self._kept.set(envelope.number)
        self.number = envelope.number
        self._keep_release(payload, envelope.body)
        return envelope.number, envelope.body

    def _keep_release(self, payload: bytes, notice: Notice) -> None:
        """Keep the notice, as it came, where it says for the first time which version is to run here."""
        release = notice.release
        wanted = "" if release is None or not release.names(self._node) else f"{release.version} {release.sha256}"
        if not self._accepts or wanted == self.wanted:
            return
        # One that is wanted no more must be known to be.
        if wanted or self._release_file.exists():
            write_durably(self._release_file, payload)
        self.wanted = wanted
