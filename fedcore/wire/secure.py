# SPDX-License-Identifier: Apache-2.0
"""Messages of secure aggregation, in the order in which they go: keys up, roster down, shares up, relayed down; then,
once updates are in, survivors down, echoes up, agreed down, shares revealed.

Nodes are numbered by their place in the roster. `attempt` is the key of the plan: a round that opens again is another
attempt, with other keys."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from fedcore.fields.checked import Name

__all__ = [
    "UP",
    "Member",
    "SecureAgreed",
    "SecureBody",
    "SecureEcho",
    "SecureKeys",
    "SecureRelay",
    "SecureReveal",
    "SecureRoster",
    "SecureShares",
    "SecureSurvivors",
    "certified_bytes",
    "context_of",
    "digest_of",
    "echo_bytes",
    "keys_bytes",
]

_MOST_NODES = 10_000
_Attempt = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
_Place = Annotated[int, Meta(ge=0, lt=_MOST_NODES)]
_Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Signature = Annotated[bytes, Meta(max_length=64)]
"""64 bytes; none in a run without keys."""
_Box = Annotated[bytes, Meta(min_length=82, max_length=82)]
"""Two shares of 33 bytes, encrypted: 16 more."""
_Share = Annotated[bytes, Meta(min_length=33, max_length=33)]


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A node's keys in one attempt, and why they are its own."""

    node: Name
    seal: _Key
    """X25519: shares for this node are encrypted with it."""
    mask: _Key
    """X25519: pairwise masks are agreed on with it."""
    own: _Key
    """BLAKE2b of the self mask's seed: shares of another one are noticed."""
    signature: _Signature = b""
    """The node's, over its keys in this attempt."""
    identity: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    """The node's public Ed25519 key."""
    certificate: _Signature = b""
    """The authority's, over the node's name and its public key."""


class SecureKeys(msgspec.Struct, frozen=True, tag="secure_keys"):
    """A node's keys."""

    attempt: _Attempt
    member: Member


class SecureRoster(msgspec.Struct, frozen=True, tag="secure_roster"):
    """Everybody whose keys are here, by name; who is not among them has no part in this attempt."""

    attempt: _Attempt
    members: Annotated[tuple[Member, ...], Meta(max_length=_MOST_NODES)]


class SecureShares(msgspec.Struct, frozen=True, tag="secure_shares"):
    """A node's shares, each encrypted for its holder."""

    attempt: _Attempt
    roster: _Key
    """SHA-256 of the roster that the node has seen."""
    boxes: Annotated[tuple[tuple[_Place, _Box], ...], Meta(max_length=_MOST_NODES)]


class SecureRelay(msgspec.Struct, frozen=True, tag="secure_relay"):
    """The shares that others have encrypted for a node: with those others it masks."""

    attempt: _Attempt
    boxes: Annotated[tuple[tuple[_Place, _Box], ...], Meta(max_length=_MOST_NODES)]


class SecureSurvivors(msgspec.Struct, frozen=True, tag="secure_survivors"):
    """Whose masked updates make the sum."""

    attempt: _Attempt
    places: Annotated[tuple[_Place, ...], Meta(max_length=_MOST_NODES)]
    """Ascending."""


class SecureEcho(msgspec.Struct, frozen=True, tag="secure_echo"):
    """A survivor's signature over the list that it has seen."""

    attempt: _Attempt
    signature: _Signature


class SecureAgreed(msgspec.Struct, frozen=True, tag="secure_agreed"):
    """The signatures of a node's holders over the list of survivors."""

    attempt: _Attempt
    echoes: Annotated[tuple[tuple[_Place, _Signature], ...], Meta(max_length=_MOST_NODES)]


class SecureReveal(msgspec.Struct, frozen=True, tag="secure_reveal"):
    """A survivor's shares: of the self mask of those who are on the list, of the mask key of those who are not."""

    attempt: _Attempt
    signature: _Signature
    """As in its echo: a coordinator that was killed in between has forgotten that."""
    shares: Annotated[tuple[tuple[_Place, _Share], ...], Meta(max_length=_MOST_NODES)]


SecureBody = (
    SecureKeys | SecureRoster | SecureShares | SecureRelay | SecureSurvivors | SecureEcho | SecureAgreed | SecureReveal
)
UP = SecureKeys | SecureShares | SecureEcho | SecureReveal
"""What nodes say."""


def context_of(run: str, run_id: str, attempt: str) -> bytes:
    """What tells an attempt from every other: keys, seals and signatures are of it alone."""
    return f"{run}\0{run_id}\0{attempt}".encode()


def digest_of(roster: SecureRoster) -> bytes:
    """SHA-256 of a roster: also what decides the order on the ring of neighbours."""
    return hashlib.sha256(b"fedkrso roster 1\0" + msgspec.msgpack.encode(roster)).digest()


def keys_bytes(context: bytes, member: Member) -> bytes:
    """What a node signs of its keys. No message begins like it."""
    return b"secure keys 1\0" + context + b"\0" + member.node.encode() + b"\0" + member.seal + member.mask + member.own


def echo_bytes(context: bytes, roster: bytes, survivors: tuple[int, ...]) -> bytes:
    """What a survivor signs of the list."""
    return b"secure list 1\0" + context + b"\0" + roster + msgspec.msgpack.encode(survivors)


def certified_bytes(node: str, identity: str) -> bytes:
    """What the authority signs at enrolment: this name has this key."""
    return b"enrolment 1\0" + node.encode() + b"\0" + identity.encode()
