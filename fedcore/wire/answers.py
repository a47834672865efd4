# SPDX-License-Identifier: Apache-2.0
"""Messages of answers: a device asks the large model at the coordinator, and hears what it said to others.

They have topics, an envelope and a version of their own, beside the protocol of rounds: a fleet may answer long after
its run has ended. As there, a signature over the exact bytes stands first, and nothing is unpacked before it is right.
A sender's numbers rise across its restarts; what a device asks carries the moment after which nobody waits for it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgpack
import msgspec
from msgspec import Meta

from fedcore.errors import ForgedMessage, MalformedMessage
from fedcore.fields.checked import Addressee, Name, Positive, Sha256, UnixSeconds, clean_text, clean_texts
from fedcore.fields.unpacking import unpack
from fedcore.wire.identity import SIGNATURE_BYTES, PublicKey, SigningKey

__all__ = [
    "ANSWERS_VERSION",
    "MOST_CLUSTERS",
    "AnswerBody",
    "AnswerEnvelope",
    "AnswerTopics",
    "Answered",
    "Ask",
    "Cluster",
    "Learned",
    "NotAnswered",
    "Resolved",
    "Thresholds",
    "opened",
    "sealed",
]

ANSWERS_VERSION: Final = 1
MOST_CLUSTERS: Final = 1000
_MAX_BYTES: Final = 1_100_000
_UNSIGNED: Final = bytes(SIGNATURE_BYTES)

_ItemId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""Drawn by the device for each text that it asks: an answer played again fits none."""
Cluster = Annotated[int, Meta(ge=0, lt=MOST_CLUSTERS)]
_Scores = Annotated[tuple[Annotated[float, Meta(ge=0, le=1)], ...], Meta(min_length=2, max_length=1000)]
"""The probability of each label."""
_Numbers = Annotated[bytes, Meta(min_length=1, max_length=1_000_000)]


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """What the device's blocks made of a text, for the blocks that follow: not the text."""

    item: _ItemId
    front: Sha256
    """Of the weights that made it (`edge_client.worker.answering.parts`)."""
    tokens: Annotated[int, Meta(ge=1, le=8192)]
    numbers: _Numbers
    """Hidden states (tokens, n), one signed byte a number."""
    scales: _Numbers
    """A factor for each token, float32, little-endian."""
    cluster: Cluster = 0


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """What the large model says."""

    item: _ItemId
    scores: _Scores


class NotAnswered(msgspec.Struct, frozen=True, tag="not_answered"):
    """It says nothing, and why."""

    item: _ItemId
    reason: str

    def __post_init__(self) -> None:
        clean_texts(self, "reason")


class Resolved(msgspec.Struct, frozen=True, tag="resolved"):
    """To a cluster: what the large model said of a text that has this embedding."""

    front: Sha256
    embedding: Annotated[bytes, Meta(min_length=1, max_length=65_536)]
    scores: _Scores


class Learned(msgspec.Struct, frozen=True, tag="learned"):
    """A device's own threshold, from what it saw since the last one was published."""

    round: Positive
    """The round of thresholds that it is for."""
    cluster: Cluster
    units: Annotated[int, Meta(ge=0, le=2**14)]
    """In units of 2**-14."""
    items: Annotated[int, Meta(ge=1, le=2**20)]
    """Texts that it was learned from: its weight in the mean."""


class Thresholds(msgspec.Struct, frozen=True, tag="thresholds"):
    """Retained: the threshold of each cluster, and for which large model. It opens a round."""

    round: Positive
    front: Sha256
    units: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**32)], ...], Meta(min_length=1, max_length=MOST_CLUSTERS)]
    """In units of 2**-32, as exact means are."""


AnswerBody = Ask | Answered | NotAnswered | Resolved | Learned | Thresholds


class AnswerEnvelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every one of them travels in."""

    answers: int
    """`ANSWERS_VERSION`."""
    run: Name
    node: Addressee
    """The device that speaks or is spoken to; empty for all."""
    sequence: Annotated[int, Meta(ge=0, le=2**62)]
    """Rises with every message of a sender, also across its restarts."""
    expires_at: UnixSeconds | None = None
    """After it, nobody waits for an answer."""
    body: AnswerBody


def sealed(envelope: AnswerEnvelope, key: SigningKey | None) -> bytes:
    """A message's bytes, after the sender's signature over them (zeros without a key)."""
    packed = msgpack.packb(msgspec.to_builtins(envelope, builtin_types=(bytes,)))
    assert isinstance(packed, bytes)
    return (key.sign(packed) if key is not None else _UNSIGNED) + packed


def opened(payload: bytes, sender: PublicKey | None, run: str, node: str) -> AnswerEnvelope:
    """Bytes as a message.

    Args:
        payload: What arrived.
        sender: Whose signature it must have; None in a run without keys.
        run: Of the topic.
        node: Of the topic; empty for one that is everybody's.

    Raises:
        ForgedMessage: Not signed by `sender`, or of another run or device.
        MalformedMessage: Too large, not msgpack, not a message, or of another version.

    Example:
        >>> body = Learned(round=1, cluster=0, units=8192, items=10)
        >>> envelope = AnswerEnvelope(answers=1, run="r", node="n", sequence=1, body=body)
        >>> opened(sealed(envelope, None), None, "r", "n") == envelope
        True
    """
    if not SIGNATURE_BYTES < len(payload) <= _MAX_BYTES:
        raise MalformedMessage(f"{len(payload)} bytes where {SIGNATURE_BYTES + 1} to {_MAX_BYTES} are allowed")
    packed = memoryview(payload)[SIGNATURE_BYTES:]
    if sender is not None:
        sender.check(payload[:SIGNATURE_BYTES], packed)
    raw = unpack(packed)
    if isinstance(raw, dict) and raw.get("answers") != ANSWERS_VERSION:
        said = clean_text(repr(raw.get("answers"))[:40])
        remedy = "upgrade fedkrso on the older side"
        raise MalformedMessage(f"answers of version {said}, this program speaks {ANSWERS_VERSION}", remedy=remedy)
    try:
        envelope = msgspec.convert(raw, AnswerEnvelope, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise MalformedMessage(f"not a message: {clean_text(str(error))}") from None
    if (envelope.run, envelope.node) != (run, node):
        raise ForgedMessage(f"a message of {envelope.node!r} in run {envelope.run!r} on this topic")
    return envelope


class AnswerTopics(msgspec.Struct, frozen=True):
    """Where they go.

    Example:
        >>> topics = AnswerTopics("voice")
        >>> topics.of("kitchen", "up"), topics.resolved(3), topics.node_of(topics.of("kitchen", "up"))
        ('fedkrso/answers/voice/node/kitchen/up', 'fedkrso/answers/voice/cluster/3/resolved', 'kitchen')
    """

    run: str

    @property
    def prefix(self) -> str:
        """Start of all topics."""
        return f"fedkrso/answers/{self.run}"

    @property
    def thresholds(self) -> str:
        """`Thresholds`, retained."""
        return f"{self.prefix}/thresholds"

    def of(self, node: str, way: Literal["up", "down"]) -> str:
        """What a device says (`up`), and what is said to it; `+` for all devices."""
        return f"{self.prefix}/node/{node}/{way}"

    def resolved(self, cluster: int | str) -> str:
        """`Resolved`; `+` for all clusters."""
        return f"{self.prefix}/cluster/{cluster}/resolved"

    def node_of(self, topic: str) -> str | None:
        """The device in a topic, or None."""
        head, separator, rest = topic.partition(f"{self.prefix}/node/")
        node, slash, _ = rest.partition("/")
        return node if separator and not head and slash and node else None
