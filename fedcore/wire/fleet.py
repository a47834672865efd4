# SPDX-License-Identifier: Apache-2.0
"""Messages of a fleet: the server's notice of the runs that there are, and each node's word of what it will do.

Both are retained, and both say all that their sender has to say: whoever comes later needs no earlier one. They have an
envelope of their own, so that no message of a run can be taken for one of a fleet."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

import msgpack
import msgspec
from msgspec import Meta

from fedcore.errors import ForgedMessage, MalformedMessage, OtherVersion
from fedcore.fields.checked import Addressee, Name, RunId, clean_text, clean_texts
from fedcore.fields.prepared import prepared
from fedcore.fields.unpacking import unpack
from fedcore.wire.codec import MAX_MESSAGE_BYTES
from fedcore.wire.identity import SIGNATURE_BYTES, PublicKey, SigningKey

__all__ = [
    "FLEET_VERSION",
    "MOST_RUNS",
    "Candidate",
    "FleetEnvelope",
    "FleetPost",
    "FleetRun",
    "Notice",
    "Release",
    "opened",
    "start_of_number",
]

FLEET_VERSION: Final = 1
"""Of these messages and their envelope."""
_START_BITS = 32
_MOST_STARTS = 2**30
_UNSIGNED: Final = bytes(SIGNATURE_BYTES)

MOST_RUNS = 64
_MOST_LABELS, _MOST_NODES = 1000, 10_000
_Text = Annotated[str, Meta(max_length=200)]


class FleetRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a fleet, as far as a node must know it to say whether it takes part."""

    run: Name
    submission: RunId
    """Tells it from every other of its name."""
    task: _Text
    """Kind of task."""
    labels: Annotated[tuple[_Text, ...], Meta(max_length=_MOST_LABELS)] = ()
    """Empty where there are none, or where a function says them."""
    method: _Text
    model: _Text
    """Name of the checkpoint: of its folder, or `package:folder`."""
    privacy: Literal["", "node", "example"] = ""
    """What its rounds promise."""
    secure: bool = False
    """Whether its updates are masked."""
    nodes: Annotated[tuple[Name, ...], Meta(max_length=_MOST_NODES)] = ()
    """Who is to take part in it, of those that said they can."""


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A version of fedkrso that a share of the fleet's nodes is to run, as far as their owners let them."""

    version: Annotated[str, Meta(max_length=64, pattern=r"^[0-9a-z.+!]+$")]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """Of its wheel."""
    permille: Annotated[int, Meta(ge=0, le=1000)]
    """How many of a thousand nodes."""

    def names(self, node: str) -> bool:
        """Whether a node is in the share. Which nodes are first follows from the wheel and the node's name; a larger
        share has all nodes of a smaller one.

        Args:
            node: Its id.

        Example:
            >>> release = Release(version="0.3.0", sha256="0" * 64, permille=300)
            >>> [node for node in ("kitchen", "garden", "attic", "barn", "den") if release.names(node)]
            ['attic', 'barn']
        """
        lot = int.from_bytes(hashlib.sha256(f"{self.sha256}/{node}".encode()).digest()[:8], "big")
        return lot * 1000 < self.permille << 64


class Notice(msgspec.Struct, frozen=True, tag="notice"):
    """All runs of a fleet that nodes are to take part in: one that is not here is over."""

    runs: Annotated[tuple[FleetRun, ...], Meta(max_length=MOST_RUNS)]
    release: Release | None = None


class Candidate(msgspec.Struct, frozen=True, kw_only=True, tag="candidate"):
    """A node's word to its fleet; the last will says `offline`."""

    online: bool
    heard: Annotated[int, Meta(ge=0, le=2**62)] = 0
    """Number of the newest notice that it believed: a server that lost its disk counts on from there."""
    run: Addressee = ""
    """The run that it is in; empty for none."""
    able: Annotated[tuple[RunId, ...], Meta(max_length=MOST_RUNS)] = ()
    """Submissions that it can and may take part in."""
    declined: Annotated[dict[Name, _Text], Meta(max_length=MOST_RUNS)] = {}
    """Why it takes no part in a run, by the run's name."""
    software: str = ""
    """Version of fedkrso on the node."""

    def __post_init__(self) -> None:
        clean_texts(self, "software")
        cleaned = {run: clean_text(why)[:200] for run, why in self.declined.items()}
        if cleaned != self.declined:
            msgspec.structs.force_setattr(self, "declined", cleaned)


class FleetEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """What every message of a fleet carries."""

    fleet: Name
    node: Addressee
    """Who speaks; empty for the server."""
    body: Notice | Candidate
    number: Annotated[int, Meta(ge=0, lt=_MOST_STARTS << _START_BITS)]
    """Rises with every message of a sender, across restarts: it begins with a count of the sender's starts."""
    version: int = FLEET_VERSION


class FleetPost:
    """Makes a sender's messages.

    Args:
        fleet: The fleet's name.
        node: Who speaks; empty for the server.
        key: Signs; None where nothing is signed.
        start: Which start of this sender it is.

    Attributes:
        last: Number of the last message.

    Example:
        >>> post = FleetPost("homes", "kitchen", None, 1)
        >>> opened(post.seal(Candidate(online=True)), "homes", None).body.online, start_of_number(post.last)
        (True, 1)
    """

    def __init__(self, fleet: str, node: str, key: SigningKey | None, start: int) -> None:
        self._fleet, self._node, self._key = fleet, node, key
        self.last = start << _START_BITS

    def seal(self, body: Notice | Candidate) -> bytes:
        """A message's bytes: signed, where there is a key, and numbered."""
        self.last += 1
        envelope = FleetEnvelope(fleet=self._fleet, node=self._node, body=body, number=self.last)
        packed = msgpack.packb(msgspec.to_builtins(envelope, builtin_types=(bytes,)))
        return (self._key.sign(packed) if self._key is not None else _UNSIGNED) + bytes(packed)

    def begin(self, start: int) -> None:
        """Number from another start on; one that is not above the present one changes nothing."""
        self.last = max(self.last, start << _START_BITS)


def start_of_number(number: int) -> int:
    """Which start of its sender a number is of.

    Example:
        >>> start_of_number(3 << 32 | 7)
        3
    """
    return number >> _START_BITS


def opened(payload: bytes, fleet: str, sender: PublicKey | None) -> FleetEnvelope:
    """A message of a fleet; nothing is unpacked before the signature is right.

    Args:
        payload: What arrived.
        fleet: Which it must be of.
        sender: Whose signature it must have; None where nothing is signed.

    Raises:
        ForgedMessage: Not signed by `sender`, or of another fleet.
        OtherVersion: Of another version of these messages.
        MalformedMessage: Not a message of a fleet.
    """
    if not SIGNATURE_BYTES < len(payload) <= MAX_MESSAGE_BYTES:
        raise MalformedMessage(f"{len(payload)} bytes where a message of a fleet is expected")
    packed = memoryview(payload)[SIGNATURE_BYTES:]
    if sender is not None:
        sender.check(payload[:SIGNATURE_BYTES], packed)
    raw = unpack(packed)
    if isinstance(raw, dict) and "fleet" in raw and raw.get("version") != FLEET_VERSION:
        raise OtherVersion("a fleet's message of another version: upgrade fedkrso on the older side")
    try:
        envelope = msgspec.convert(raw, prepared(FleetEnvelope), builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise MalformedMessage(f"not a message of a fleet: {clean_text(str(error))}") from None
    if envelope.fleet != fleet:
        raise ForgedMessage(f"a message of fleet {envelope.fleet}")
    return envelope
