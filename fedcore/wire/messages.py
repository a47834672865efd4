# SPDX-License-Identifier: Apache-2.0
"""The protocol's messages: small, frozen, tagged. Every one travels in an `Envelope`."""

from __future__ import annotations

import msgspec

from fedcore.memoryplan import Parts
from fedcore.plan import Plan
from fedcore.wire.manifest import Manifest

__all__ = [
    "PROTOCOL_VERSION",
    "Ack",
    "Body",
    "Chunk",
    "Commit",
    "Declined",
    "Envelope",
    "Grant",
    "Missing",
    "Offer",
    "Refuse",
    "Status",
    "Telemetry",
    "Topics",
]

PROTOCOL_VERSION = 1


class Offer(msgspec.Struct, frozen=True, tag="offer"):
    """A node has an object for the coordinator."""

    transfer: str
    manifest: Manifest


class Grant(msgspec.Struct, frozen=True, tag="grant"):
    """Send it: at most `window` chunks unacknowledged; `have` is the bitmap of chunks already here, least significant bit first."""

    transfer: str
    window: int
    have: bytes


class Chunk(msgspec.Struct, frozen=True, tag="chunk"):
    """One piece of an object, addressed by number, so that any order and any repetition will do."""

    transfer: str
    index: int
    crc32: int
    data: bytes


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    """These chunks are here (bitmap): the receiver's word, not the broker's."""

    transfer: str
    have: bytes


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """The object is verified, on disk and in the ledger; the sender may forget it."""

    transfer: str


class Refuse(msgspec.Struct, frozen=True, tag="refuse"):
    """The object is not wanted, and why."""

    transfer: str
    reason: str


class Missing(msgspec.Struct, frozen=True, tag="missing"):
    """A node asks for chunks of a published object (named by its SHA-256) again."""

    sha256: str
    indices: tuple[int, ...]


class Declined(msgspec.Struct, frozen=True, tag="declined"):
    """A participant will not send an update this round, and why."""

    reason: str


class Status(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """A node's word about itself, retained; the last will says `offline`."""

    online: bool
    state: str = ""
    """What it is doing: idle, loading, fetching, training, sending, finished."""
    device: str = ""
    version: int = -1
    """Held state version; -1 before the model is loaded."""
    generation: int = 0
    digest: str = ""
    budget_bytes: int = 0
    enclosure: str = ""
    """What holds the worker to the budget: a memory cgroup, an rlimit, or none."""
    reason: str = ""


class Telemetry(msgspec.Struct, frozen=True, kw_only=True, tag="telemetry"):
    """A node's numbers while it works; lost ones do not matter."""

    state: str
    step: int
    steps: int
    loss: float | None
    agent_rss_bytes: int
    agent_peak_rss_bytes: int
    worker_bytes: int | None
    peak_bytes: int
    """Highest agent plus worker memory so far."""
    budget_bytes: int
    available_bytes: int | None = None
    """Memory that the device still has; None where it does not tell."""
    pressure_percent: float | None = None
    """Share of the last ten seconds in which some task waited for memory."""
    parts: Parts | None = None
    """Where the worker's memory goes, as planned."""
    uplink_bytes: int
    downlink_bytes: int


Body = Plan | Offer | Grant | Chunk | Ack | Commit | Refuse | Missing | Declined | Status | Telemetry


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What every message carries, so that no feature of MQTT 5 is needed for correctness."""

    run: str
    round: int
    node: str
    """Sender or addressee; empty where the coordinator speaks to all."""
    body: Body
    version: int = PROTOCOL_VERSION
    expires_at: float | None = None
    """Unix seconds after which the message means nothing any more."""
    correlation: str = ""


class Topics(msgspec.Struct, frozen=True):
    """The topics of a run (design 6)."""

    run: str

    @property
    def prefix(self) -> str:
        """Start of all topics."""
        return f"fedkrso/{PROTOCOL_VERSION}/{self.run}"

    @property
    def plan(self) -> str:
        """The present round, retained."""
        return f"{self.prefix}/plan"

    def outcome(self, name: str, index: int | str) -> str:
        """A chunk of a published object, retained; `+` for all."""
        return f"{self.prefix}/outcome/{name}/{index}"

    def status(self, node: str) -> str:
        """A node's status, retained; `+` for all nodes."""
        return f"{self.prefix}/node/{node}/status"

    def up(self, node: str, kind: str) -> str:
        """From a node."""
        return f"{self.prefix}/node/{node}/up/{kind}"

    def down(self, node: str, kind: str) -> str:
        """To a node."""
        return f"{self.prefix}/node/{node}/down/{kind}"

    def node_of(self, topic: str) -> str | None:
        """The node in a node's topic, or None."""
        parts = topic.removeprefix(f"{self.prefix}/").split("/")
        return parts[1] if len(parts) >= 3 and parts[0] == "node" else None
