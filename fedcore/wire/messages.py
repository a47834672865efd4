# SPDX-License-Identifier: Apache-2.0
"""The protocol's messages: small, frozen, tagged. Every one travels in an `Envelope`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from fedcore.device.memoryplan import MemoryComponents
from fedcore.device.readings import Readings
from fedcore.fields.checked import (
    Address,
    Addressee,
    Bytes,
    ChunkData,
    ChunkIndex,
    Count,
    Crc32,
    HaveBits,
    Name,
    Number,
    RoundNumber,
    RunId,
    Sha256,
    TransferId,
    UnixSeconds,
    Window,
    clean_texts,
)
from fedcore.fields.formats import PROTOCOL
from fedcore.fields.manifest import Manifest
from fedcore.round.measurement import Measurement
from fedcore.round.plan import Plan
from fedcore.wire.secure import SecureBody

__all__ = [
    "PROTOCOL_VERSION",
    "UP_KINDS",
    "Ack",
    "Body",
    "Chunk",
    "Commit",
    "Declined",
    "Envelope",
    "Formats",
    "Grant",
    "Missing",
    "Offer",
    "Refuse",
    "Status",
    "Telemetry",
    "Topics",
    "Way",
    "Welcome",
]

PROTOCOL_VERSION = PROTOCOL
_TOPICS_VERSION = 2
"""Stays when the protocol's version rises: sides that do not speak the same meet on the same topics, so that each can
say so; and the rules of brokers that were set up before still let them."""


Formats = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=40)], Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]],
    msgspec.Meta(max_length=20),
]
"""Versions by what they are of."""


Way = Literal["chunks", "store", "stored"]
"""How an update comes: in chunks through the broker; put into a store, by the address that it is granted; or it lies
there, for the coordinator to fetch."""


class Offer(msgspec.Struct, frozen=True, omit_defaults=True, tag="offer"):
    """A node has an object for the coordinator. Who knows of no other way reads an offer of chunks, and grants that."""

    transfer: TransferId
    manifest: Manifest
    way: Way = "chunks"


class Grant(msgspec.Struct, frozen=True, omit_defaults=True, tag="grant"):
    """Send it: at most `window` chunks unacknowledged; `have` is the bitmap of chunks already here, least significant
    bit first. With an address: put it there, and send no chunk."""

    transfer: TransferId
    window: Window
    have: HaveBits
    address: Address = ""
    """For HTTP's PUT of this object alone, and for a while; only where the offer asked for a store."""


class Chunk(msgspec.Struct, frozen=True, tag="chunk"):
    """One piece of an object, addressed by number, so that any order and any repetition will do."""

    transfer: TransferId
    index: ChunkIndex
    crc32: Crc32
    data: ChunkData


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    """These chunks are here (bitmap): the receiver's word, not the broker's."""

    transfer: TransferId
    have: HaveBits


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """The object is verified, on disk and in the ledger; the sender may forget it."""

    transfer: TransferId


class Refuse(msgspec.Struct, frozen=True, tag="refuse"):
    """The object is not wanted, and why."""

    transfer: TransferId
    reason: str

    def __post_init__(self) -> None:
        clean_texts(self, "reason")


class Missing(msgspec.Struct, frozen=True, tag="missing"):
    """A node asks for chunks of a published object (named by its SHA-256) again."""

    sha256: Sha256
    indices: Annotated[tuple[ChunkIndex, ...], msgspec.Meta(max_length=1024)]


class Declined(msgspec.Struct, frozen=True, tag="declined"):
    """A participant will not send an update this round, and why."""

    reason: str

    def __post_init__(self) -> None:
        clean_texts(self, "reason")


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    """The coordinator's answer to a node that is new to its run, or speaks of another run of its name: from here on the
    node is in the run that the envelope names. It counts only with the correlation that the node gave last, so that
    none can be played again."""

    formats: Formats
    """What the coordinator reads and writes (`fedcore.fields.formats`)."""
    number: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0
    """The node's start that the coordinator has heard of: a node that lost its disk counts on from there."""
    software: str = ""
    """Version of fedkrso at the coordinator."""

    def __post_init__(self) -> None:
        clean_texts(self, "software")


class Status(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """A node's word about itself, retained; the last will says `offline`."""

    online: bool
    state: str = ""
    """What it is doing (`edge_client.agent.session.State`)."""
    device: str = ""
    version: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] = -1
    """Held state version; -1 before the model is loaded."""
    generation: RoundNumber = 0
    digest: str = ""
    budget_bytes: Bytes = 0
    memory_group: str = ""
    """What holds the worker to the budget: a memory cgroup, an rlimit, or none."""
    reason: str = ""
    security: str = ""
    """How this node's link and messages are protected; an insecure one says so every time."""
    software: str = ""
    """Version of fedkrso on the node."""
    route: str = ""
    """How the node computes: `float32 on cpu`."""
    measured: Measurement | None = None
    """Of the run's last state, which no update follows that could carry it."""
    formats: Formats = {}
    """What the node reads and writes (`fedcore.fields.formats`)."""

    def __post_init__(self) -> None:
        clean_texts(self, "state", "device", "digest", "memory_group", "reason", "security", "software", "route")


class Telemetry(msgspec.Struct, frozen=True, kw_only=True, tag="telemetry"):
    """A node's numbers while it works; lost ones do not matter."""

    state: str
    step: Count
    steps: Count
    loss: Number | None
    agent_rss_bytes: Bytes
    agent_peak_rss_bytes: Bytes
    worker_bytes: Bytes | None
    worker_anonymous_bytes: Bytes | None = None
    """Of the worker's memory, what only swap could take back; the rest is pages of files."""
    accelerator_bytes: Bytes | None = None
    """What the worker holds of an accelerator's own memory."""
    peak_bytes: Bytes
    """Highest agent plus worker memory so far."""
    budget_bytes: Bytes
    available_bytes: Bytes | None = None
    """Memory that the device still has; None where it does not tell."""
    pressure_percent: Number | None = None
    """Share of the last ten seconds in which some task waited for memory."""
    components: MemoryComponents | None = None
    """Where the worker's memory goes, as planned."""
    readings: Readings | None = None
    """The device's sensors."""
    uplink_bytes: Bytes
    downlink_bytes: Bytes
    version: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] = -1
    generation: RoundNumber = 0
    digest: str = ""
    """As in the status, which may be lost on its way."""
    plan: str = ""
    """Key of the plan that the node has heard; empty for none."""
    refused: str = ""
    """Why it last refused a message that should have been the coordinator's; empty where it never did."""

    def __post_init__(self) -> None:
        clean_texts(self, "state", "digest", "plan", "refused")


Body = (
    Plan
    | Offer
    | Grant
    | Chunk
    | Ack
    | Commit
    | Refuse
    | Missing
    | Declined
    | Welcome
    | Status
    | Telemetry
    | SecureBody
)


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What every message carries, so that no feature of MQTT 5 is needed for correctness."""

    run: Name
    round: RoundNumber
    node: Addressee
    """Sender or addressee; empty where the coordinator speaks to all."""
    body: Body
    version: int = PROTOCOL_VERSION
    sequence: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Rises with every message of a sender (`fedcore.wire.post`): an old plan or status played again is noticed."""
    expires_at: UnixSeconds | None = None
    """Unix seconds after which the message means nothing any more."""
    correlation: Annotated[str, msgspec.Meta(max_length=128)] = ""
    """A node's own random word, another one whenever it has come to another run. A coordinator's message that repeats
    it was made after the node said it, so it is believed whatever was heard before."""
    run_id: RunId = ""
    """Of the run that the sender is in; empty for a node that has not heard of one."""


UP_KINDS: Final = ("offer", "chunk", "missing", "declined", "telemetry", "secure")
"""What a node says beside its status, each on a topic of its own (`Topics.up`)."""


class Topics(msgspec.Struct, frozen=True):
    """The topics of a run (design 6), or of a fleet, whose own are named as a run's are: `plan` has its notice.

    Example:
        >>> Topics("reviews").plan, Topics("reviews", "homes").plan
        ('fedkrso/2/reviews/plan', 'fedkrso/2/homes/runs/reviews/plan')
    """

    run: str
    fleet: str = ""
    """The fleet whose nodes take part: its runs lie below its own topics, so that rules at a broker hold for all of
    them. Empty for a run that has nodes of its own."""

    @property
    def prefix(self) -> str:
        """Start of all topics."""
        within = f"{self.fleet}/runs/" if self.fleet else ""
        return f"fedkrso/{_TOPICS_VERSION}/{within}{self.run}"

    @property
    def plan(self) -> str:
        """The present round, retained."""
        return f"{self.prefix}/plan"

    @property
    def probe(self) -> str:
        """The coordinator's own, to find out how large a message may be."""
        return f"{self.prefix}/probe"

    def published_state(self, name: str, index: int | str) -> str:
        """A chunk of a published object, retained; `+` for all."""
        return f"{self.prefix}/state/{name}/{index}"

    def status(self, node: str) -> str:
        """A node's status, retained; `+` for all nodes."""
        return f"{self.prefix}/node/{node}/status"

    def up(self, node: str, kind: str) -> str:
        """The topic of a kind of message from a node."""
        return f"{self.prefix}/node/{node}/up/{kind}"

    def down(self, node: str, kind: str) -> str:
        """The topic of a kind of message to a node."""
        return f"{self.prefix}/node/{node}/down/{kind}"

    def node_of(self, topic: str) -> str | None:
        """The node in a node's topic, or None."""
        head, separator, rest = topic.partition(f"{self.prefix}/node/")
        node, slash, _ = rest.partition("/")
        return node if separator and not head and slash and node else None
