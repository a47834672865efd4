# SPDX-License-Identifier: Apache-2.0
"""What the coordinator sends: plans and published states to all, retained; grants, acknowledgements and repairs to one
node. What is for all goes out step by step, so that a slow broker, or a slow store, holds nothing else up; its order
stays: an object is where nodes find it before a plan names it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from coordinator.messages.outbox import Outbox
from coordinator.objects.shelf import Shelf
from coordinator.store.folder import RunFolder
from fedcore.errors import TransportError
from fedcore.fields.formats import SPOKEN
from fedcore.fields.manifest import Manifest
from fedcore.round.plan import ArtefactObject, ObjectKind, Plan, PublishedObject, StateObject, objects_needed
from fedcore.system.software import software
from fedcore.transport.base import Message, Transport
from fedcore.wire.files import read_chunk
from fedcore.wire.messages import Ack, Chunk, Commit, Grant, Refuse, Topics, Welcome
from fedcore.wire.post import Post
from fedcore.wire.secure import SecureBody

__all__ = ["Key", "Objects", "Publisher", "key_of"]

Key = tuple[int, ObjectKind]
Objects = Mapping[Key, StateObject]
"""Published objects by version and kind."""
# A node asks for one window at a time; more in one request would turn a small message into many large ones.
_MOST_REPAIRS = 8
_MOST_WITHDRAWN = 2000
_MOST_LAST_BYTES = 64 * 2**20


def key_of(obj: StateObject) -> Key:
    """Under what an object is kept."""
    return obj.version, obj.kind


class Publisher:
    """The sending side of a run.

    Args:
        transport: Started by the coordinator.
        post: Numbers and signs messages.
        topics: Of the run.
        folder: Where published states lie.
        keep_published: Versions that stay retained.
        listeners: How many nodes are online now, for the count of bytes.
        shelf: Where large objects lie beside the broker; by default nowhere.
    """

    def __init__(
        self,
        transport: Transport,
        post: Post,
        topics: Topics,
        folder: RunFolder,
        keep_published: int,
        listeners: Callable[[], int],
        shelf: Shelf | None = None,
    ) -> None:
        self._transport, self._post, self._topics, self._folder = transport, post, topics, folder
        self._keep_published, self._listeners = keep_published, listeners
        self._shelf = shelf or Shelf(None, "", lambda *told: None, time.monotonic)
        self._unsent: dict[str, Message] = {}
        self._outbox = Outbox(transport, self._count)
        self._then: Callable[[], None] | None = None
        self._artefact: ArtefactObject | None = None
        self._artefact_retained = False
        self._announced: Plan | None = None
        """The last plan, with addresses."""
        self.most_bytes: int | None = None
        """Larger messages do not pass the broker."""
        self.sent_bytes = 0
        """Payload bytes sent since the round opened; a broadcast counts once for every node online."""

    def reply(self, node: str, server_round: int, body: Grant | Ack | Commit | Refuse | Chunk | SecureBody) -> None:
        """To one node. A chunk that cannot go out now is asked for again by the node's own timer; a word about its
        update waits here."""
        payload = self._post.seal(body, server_round, to=node)
        self.sent_bytes += len(payload)
        message = Message(self._topics.down(node, type(body).__name__.lower()), payload)
        self._unsent.pop(message.topic, None)
        if not self._transport.publish(message) and not isinstance(body, Chunk):
            # One for each node and kind: a later word of a kind says all that an earlier one did.
            self._unsent[message.topic] = message

    def flush(self) -> bool:
        """Send what waits, and the plan again before its addresses run out; False while the transport takes no more."""
        if self._announced is not None and self._shelf.due and not self._outbox.has("plan"):
            self.plan(self._announced)
        while self._unsent:
            topic, message = next(iter(self._unsent.items()))
            if not self._transport.publish(message):
                return False
            del self._unsent[topic]
        sent = self._outbox.flush()
        if self._then is not None and self._outbox.empty:
            then, self._then = self._then, None
            then()
        return sent

    @property
    def over(self) -> bool:
        """Whether all that is for all is out, as far as a broker that may be away takes it."""
        return self._outbox.empty or self._outbox.stuck

    def forgotten(self) -> None:
        """The broker may have lost what it was to retain."""
        self._artefact_retained = False

    def again(self, plan: Plan | None, objects: Objects) -> None:
        """The link is there again: a broker without persistence has forgotten what was retained.

        Args:
            plan: The present one.
            objects: All published objects.
        """
        self.forgotten()
        if published := max((obj.version for obj in objects.values() if not obj.snapshot), default=0):
            self._add_state(published, objects)
        if plan is not None:
            self.plan(plan)
        # Last: a state that is out now may open a round, whose plan must not be followed by the one before.
        self.flush()

    def plan(self, plan: Plan) -> None:
        """The present plan, to all, in place of one that is not out yet; before the first one the run's artefact, which
        a node needs before it loads a model.

        Raises:
            TransportError: It is larger than what passes the broker.
        """
        self._artefact = plan.artefact
        self._outbox.add("plan", self._plan(plan))

    def _plan(self, plan: Plan) -> Iterator[Message | None]:
        if plan.artefact is not None and not self._artefact_retained:
            yield from self._lies(self._folder.artefact, plan.artefact.manifest, 0)
            self._artefact_retained = True
        files = [(self._folder.published_state(obj.version, obj.kind), obj.manifest) for obj in plan.objects]
        while not self._shelf.settled(files):
            yield None
        self._announced = plan = self._shelf.addressed(plan)
        sealed = self._post.seal(plan, plan.round, expires_at=plan.deadline_at or None)
        if self.most_bytes is not None and len(sealed) > self.most_bytes:
            raise TransportError(
                f"a plan of {len(sealed)} bytes for {len(plan.cohort)} nodes does not pass the broker, "
                f"which takes less than {self.most_bytes}",
                place=self._topics.plan,
                remedy="set round.cohort to fewer nodes, or raise the broker's limit",
            )
        yield Message(self._topics.plan, sealed, retain=True)

    def remind(self, node: str, plan: Plan) -> None:
        """The present plan, if it is out, to a node that has not heard it: a broker may acknowledge a message and lose
        it."""
        if self._announced is None or self._announced.key != plan.key:
            return
        plan = self._announced
        payload = self._post.seal(plan, plan.round, to=node, expires_at=plan.deadline_at or None)
        self.sent_bytes += len(payload)
        self._transport.publish(Message(self._topics.down(node, "plan"), payload))

    def welcome(self, node: str, number: int, correlation: str) -> None:
        """To a node that is not in this run yet.

        Args:
            node: Who.
            number: Its start that was heard last.
            correlation: The node's word.
        """
        body = Welcome(formats=dict(SPOKEN), number=number, software=software())
        payload = self._post.seal(body, to=node, correlation=correlation)
        self._transport.publish(Message(self._topics.down(node, "welcome"), payload))

    def withdraw(self, plan: Plan) -> None:
        """Clear what an earlier run of this name left at the broker: its plan, and the objects that it lists.

        Args:
            plan: The earlier run's.
        """
        gone = [(obj.manifest.sha256, min(obj.manifest.chunks, _MOST_WITHDRAWN)) for obj in plan.objects]
        self._outbox.add("withdrawn", iter((Message(self._topics.plan, b"", retain=True), *self._cleared(gone))))

    def published_state(self, version: int, objects: Objects, then: Callable[[], None] | None = None) -> None:
        """Chunks of the version's smaller object, to all, unless it lies where nodes can fetch it; larger and older
        objects, and snapshots, go to whoever asks.

        Args:
            version: Of the state.
            objects: All published objects.
            then: Called, by this or a later `flush`, when all that is for all is out.
        """
        self._then = then or self._then
        self._add_state(version, objects)
        self.flush()

    def _add_state(self, version: int, objects: Objects) -> None:
        obj = min(
            (o for o in objects.values() if o.version == version and not o.snapshot),
            key=lambda o: o.manifest.size_bytes,
        )
        old = version - self._keep_published
        gone = [(o.manifest.sha256, o.manifest.chunks) for o in objects.values() if o.version == old and not o.snapshot]
        lies = self._lies(self._folder.published_state(version, obj.kind), obj.manifest, version)
        self._outbox.add("state", chain(lies, self._cleared(gone)))

    def last_state(self, plan: Plan, objects: Objects) -> None:
        """At a run's end: all that leads a node that has nothing to the last state, retained, unless that is too large
        for a broker to keep.

        Args:
            plan: The last one.
            objects: All published objects.
        """
        way = objects_needed(plan, 0, 0) or ()
        if sum(obj.manifest.size_bytes for obj in way) > _MOST_LAST_BYTES:
            return
        chunks = [
            self._chunks(self._folder.published_state(obj.version, obj.kind), obj.manifest, obj.version)
            for obj in way
            if key_of(obj) in objects
        ]
        self._outbox.add("last", chain.from_iterable(chunks))

    def _lies(self, path: Path, manifest: Manifest, version: int) -> Iterator[Message | None]:
        """Have an object be where all nodes find it."""
        while not self._shelf.settled([(path, manifest)]):
            yield None
        if not self._shelf.has(manifest):
            yield from self._chunks(path, manifest, version)

    def _chunks(self, path: Path, manifest: Manifest, version: int) -> Iterator[Message | None]:
        """An object's chunks to all, retained."""
        for index in range(manifest.chunks):
            chunk = read_chunk(path, manifest.sha256, index, manifest.chunk_bytes)
            topic = self._topics.published_state(manifest.sha256[:16], index)
            yield Message(topic, self._post.seal(chunk, version), retain=True)

    def _cleared(self, gone: Iterable[tuple[str, int]]) -> Iterator[Message | None]:
        """Chunks of objects, by hash and number, that are retained no more."""
        for sha256, chunks in gone:
            for index in range(chunks):
                yield Message(self._topics.published_state(sha256[:16], index), b"", retain=True)

    def repair(self, node: str, sha256: str, indices: tuple[int, ...], objects: Objects) -> bool:
        """Chunks of a published object again, to the node that misses them; False if there is no such object."""
        for obj, path in self._published(objects):
            if obj.manifest.sha256 == sha256:
                for index in indices[:_MOST_REPAIRS]:
                    if 0 <= index < obj.manifest.chunks:
                        self.reply(node, obj.version, read_chunk(path, sha256, index, obj.manifest.chunk_bytes))
                return True
        return False

    def _published(self, objects: Objects) -> Iterator[tuple[PublishedObject, Path]]:
        if self._artefact is not None:
            yield self._artefact, self._folder.artefact
        for (version, kind), obj in objects.items():
            yield obj, self._folder.published_state(version, kind)

    def _count(self, message: Message) -> None:
        self.sent_bytes += len(message.payload) * self._listeners()
