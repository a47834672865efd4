# SPDX-License-Identifier: Apache-2.0
"""The agent's messages: what it says goes out numbered and signed, what it hears counts only from this run's
coordinator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_client.agent.membership import Membership
from edge_client.node import Node
from edge_client.secure.party import Trust
from fedcore.errors import ForgedMessage, OtherVersion
from fedcore.fields.formats import SPOKEN, disagreement
from fedcore.system.durable import DurableNumber
from fedcore.transport.address import is_encrypted
from fedcore.transport.base import Message, Transport
from fedcore.wire.codec import decode
from fedcore.wire.identity import PublicKey, SigningKey, security
from fedcore.wire.messages import Body, Envelope, Status, Topics, Welcome
from fedcore.wire.post import Post

__all__ = ["Keys", "Messages"]


@dataclass(frozen=True)
class Keys:
    """What a node signs and believes by; both or none, as the run has keys or not.

    Attributes:
        own: Signs this node's messages.
        coordinator: Whose signature plans, published states and answers must have.
        authority: Whose word for other nodes' keys is believed, in secure aggregation.
        enrolment: Its word for this node's key.
    """

    own: SigningKey | None = None
    coordinator: PublicKey | None = None
    authority: PublicKey | None = None
    enrolment: bytes = b""

    @property
    def trust(self) -> Trust:
        """What of them secure aggregation goes by."""
        return Trust(self.own, self.authority, self.enrolment)


class Messages:
    """Both directions of one node.

    Args:
        node: Its file.
        folder: Where numbers are kept that must not go back after a restart.
        transport: A transport that is not started yet.
        key: Signs what goes out; None in a run without keys.
        coordinator: Whose signature plans, published states and answers must have; None in a run without keys.
    """

    def __init__(
        self,
        node: Node,
        folder: Path,
        transport: Transport,
        key: SigningKey | None = None,
        coordinator: PublicKey | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.topics = Topics(node.run, node.fleet)
        self.security = security(tls=is_encrypted(node.broker.url), signed=key is not None and coordinator is not None)
        self.uplink_bytes = self.downlink_bytes = 0
        self._run, self._node, self._transport, self._coordinator = node.run, node.node, transport, coordinator
        self._start = DurableNumber(folder / "start")
        self._start.set(self._start.value + 1)
        self.membership = Membership(folder / "runs" / f"{node.run}.json", signed=coordinator is not None)
        self._post = Post(node.run, node.node, key, self._start.value, self.membership.run_id)
        self._post.correlation = self.membership.word

    def will(self) -> Message:
        """What the broker says for a node whose link was lost."""
        return self._status(Status(online=False, state="lost"))

    def subscribe(self) -> None:
        """Hear plans and what is meant for this node."""
        for topic in (self.topics.plan, self.topics.down(self._node, "#")):
            self._transport.subscribe(topic)

    def up(self, kind: str, body: Body, server_round: int) -> None:
        """To the coordinator; what cannot go out now is said again by whoever needs an answer."""
        payload = self._post.seal(body, server_round)
        if self._transport.publish(Message(self.topics.up(self._node, kind), payload)):
            self.uplink_bytes += len(payload)

    def tell(self, status: Status) -> None:
        """This node's status, to all, retained."""
        self._transport.publish(self._status(status))

    def open(self, topic: str, payload: bytes) -> Body:
        """What came on a topic. A plan or a welcome may bring the node to another run of its name: `membership` then
        has another id, and so has what goes out from now on.

        Raises:
            ForgedMessage: Not signed by the coordinator, of another run, for another node, or played again.
            OtherVersion: The coordinator's program and this one do not read the same; the message says which side has
                to be upgraded.
            MalformedMessage: Not a message.
        """
        self.downlink_bytes += len(payload)
        envelope = self._decoded(topic, payload)
        if envelope.run != self._run or envelope.node not in ("", self._node):
            raise ForgedMessage(f"a message for {envelope.node or 'all'} in run {envelope.run}", place=topic)
        if self.membership.hear(envelope, topic):
            self._post.run_id, self._post.correlation = self.membership.run_id, self.membership.word
        if isinstance(envelope.body, Welcome) and self._start.value <= envelope.body.number:
            # This node lost its disk, and counts on from what the coordinator has heard of it.
            self._start.set(envelope.body.number + 1)
            self._post.begin(self._start.value)
        return envelope.body

    def _decoded(self, topic: str, payload: bytes) -> Envelope:
        try:
            envelope = decode(payload, self._coordinator)
        except OtherVersion as error:
            words = disagreement(SPOKEN, {**SPOKEN, "protocol": error.version})
            raise OtherVersion(words, place=topic) from None
        if isinstance(envelope.body, Welcome) and (words := disagreement(SPOKEN, envelope.body.formats)):
            raise OtherVersion(words, place=topic)
        return envelope

    def _status(self, status: Status) -> Message:
        return Message(self.topics.status(self._node), self._post.seal(status), retain=True)
