# SPDX-License-Identifier: Apache-2.0
"""What the coordinator sends: plans and outcomes to all, retained; grants, acknowledgements and repairs to one node."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from coordinator.files import RunFolder
from fedcore.plan import OutcomeObject, Plan
from fedcore.transport.base import Message, Transport
from fedcore.wire.codec import encode
from fedcore.wire.files import read_chunk
from fedcore.wire.messages import Ack, Chunk, Commit, Envelope, Grant, Refuse, Topics

__all__ = ["Objects", "Publisher"]

Objects = Mapping[tuple[int, bool], OutcomeObject]
"""Published objects by (version, whole)."""
_MOST_REPAIRS = 64
_BROADCAST_SECONDS = 2.0


class Publisher:
    """The sending side of a run.

    Args:
        transport: Started by the coordinator.
        run: The run's name.
        folder: Where outcomes lie.
        keep_outcomes: Versions that stay retained.
        listeners: How many nodes are online now, for the count of bytes.
    """

    def __init__(self, transport: Transport, run: str, folder: RunFolder, keep_outcomes: int, listeners: Callable[[], int]) -> None:
        self._transport, self._run, self._folder = transport, run, folder
        self._keep_outcomes, self._listeners = keep_outcomes, listeners
        self._topics = Topics(run)
        self.sent_bytes = 0
        """Payload bytes sent since the round opened; a broadcast counts once for every node online."""

    def reply(self, node: str, server_round: int, body: Grant | Ack | Commit | Refuse | Chunk) -> None:
        """To one node. What cannot go out now is asked for again by the node's own timer."""
        payload = encode(Envelope(run=self._run, round=server_round, node=node, body=body))
        self.sent_bytes += len(payload)
        self._transport.publish(Message(self._topics.down(node, type(body).__name__.lower()), payload))

    def plan(self, plan: Plan) -> None:
        """The present plan, to all."""
        envelope = Envelope(run=self._run, round=plan.round, node="", body=plan, expires_at=plan.deadline_at or None)
        self._broadcast(Message(self._topics.plan, encode(envelope), retain=True))

    def outcome(self, version: int, objects: Objects) -> None:
        """Chunks of the version's smallest object, to all; larger and older objects go to whoever asks."""
        obj = min((o for (v, _), o in objects.items() if v == version), key=lambda o: o.manifest.size_bytes)
        path = self._folder.outcome(version, whole=obj.base_version is None)
        for index in range(obj.manifest.chunks):
            chunk = read_chunk(path, obj.manifest.sha256, index, obj.manifest.chunk_bytes)
            envelope = Envelope(run=self._run, round=version, node="", body=chunk)
            self._broadcast(Message(self._topics.outcome(obj.manifest.sha256[:16], index), encode(envelope), retain=True))
        for (v, _), gone in objects.items():
            if v == version - self._keep_outcomes:
                for index in range(gone.manifest.chunks):
                    self._broadcast(Message(self._topics.outcome(gone.manifest.sha256[:16], index), b"", retain=True))

    def repair(self, node: str, sha256: str, indices: tuple[int, ...], objects: Objects) -> bool:
        """Chunks of a published object again, to the node that misses them; False if there is no such object."""
        for (version, whole), obj in objects.items():
            if obj.manifest.sha256 == sha256:
                path = self._folder.outcome(version, whole=whole)
                for index in indices[:_MOST_REPAIRS]:
                    if 0 <= index < obj.manifest.chunks:
                        self.reply(node, version, read_chunk(path, sha256, index, obj.manifest.chunk_bytes))
                return True
        return False

    def _broadcast(self, message: Message) -> None:
        self.sent_bytes += len(message.payload) * self._listeners()
        deadline = time.monotonic() + _BROADCAST_SECONDS
        # The transport takes a window at a time; what is lost all the same is asked for by the nodes.
        while not self._transport.publish(message) and time.monotonic() < deadline:
            time.sleep(0.005)
