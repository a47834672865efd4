# SPDX-License-Identifier: Apache-2.0
"""Messages to bytes and back: a signature, then msgpack with limits between bytes and objects, msgspec between objects
and typed messages.

A plan names everybody who is invited, and every node gets it: it is deflated, which makes a fifth of 10,000 names that
are alike, and half of the rest. The signature is over what travels.

Whatever arrives, `decode` gives an envelope or raises `MalformedMessage`, and allocates no more than the bytes it was
given, or that a deflated message may come to."""

from __future__ import annotations

import reprlib
import zlib
from typing import Final

import msgpack
import msgspec

from fedcore.errors import ConfigError, MalformedMessage, OtherVersion
from fedcore.fields.checked import clean_text
from fedcore.fields.prepared import prepared
from fedcore.fields.unpacking import inflated, unpack
from fedcore.round.plan import Plan
from fedcore.wire.identity import SIGNATURE_BYTES, PublicKey, SigningKey
from fedcore.wire.messages import PROTOCOL_VERSION, Envelope

__all__ = ["MAX_MESSAGE_BYTES", "decode", "encode"]

MAX_MESSAGE_BYTES: Final = 1_250_000
_UNSIGNED: Final = bytes(SIGNATURE_BYTES)
_DEFLATED: Final = 0x78
"""What a zlib stream begins with, and no map of msgpack does."""
_LEVEL: Final = 6
_MOST_TIMES: Final = 64
"""What a deflated message may come to, of what travels: names that count on come to a fifth, numbered ones to less."""


def encode(envelope: Envelope, key: SigningKey | None = None) -> bytes:
    """An envelope as msgpack, after the sender's signature over it (zeros without a key); a plan's is deflated."""
    packed = msgpack.packb(msgspec.to_builtins(envelope, builtin_types=(bytes,)))
    assert isinstance(packed, bytes)
    if isinstance(envelope.body, Plan):
        packed = zlib.compress(packed, _LEVEL)
    return (key.sign(packed) if key is not None else _UNSIGNED) + packed


def decode(payload: bytes, sender: PublicKey | None = None, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Envelope:
    """Bytes as an envelope; nothing is unpacked before the signature is right.

    Args:
        payload: What arrived.
        sender: Whose signature it must have; None in a run without keys.
        max_bytes: Longer ones are refused.

    Raises:
        ForgedMessage: Not signed by `sender`.
        OtherVersion: Of another version of the protocol.
        MalformedMessage: Too large, not msgpack, or not a message.

    Example:
        >>> from fedcore.wire.messages import Commit
        >>> envelope = Envelope(run="r", round=1, node="n", body=Commit("t"))
        >>> decode(encode(envelope)) == envelope
        True
    """
    if not SIGNATURE_BYTES < len(payload) <= max_bytes:
        raise MalformedMessage(f"{len(payload)} bytes where {SIGNATURE_BYTES + 1} to {max_bytes} are allowed")
    packed = memoryview(payload)[SIGNATURE_BYTES:]
    if sender is not None:
        sender.check(payload[:SIGNATURE_BYTES], packed)
    raw = unpack(_inflated(packed, max_bytes) if packed[0] == _DEFLATED else packed)
    if isinstance(raw, dict) and raw.get("version") != PROTOCOL_VERSION:
        raise _other_version(raw.get("version"))
    try:
        return msgspec.convert(raw, prepared(Envelope), builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise MalformedMessage(f"not a message: {clean_text(str(error))}") from None
    except ConfigError as error:
        # A plan with a task that no package here has, or one that cannot be.
        raise MalformedMessage(
            f"not a message for this program: {clean_text(error.one_line())}",
            remedy="install here what the coordinator has",
        ) from None


def _inflated(packed: memoryview, max_bytes: int) -> bytes:
    most = min(max_bytes, _MOST_TIMES * len(packed))
    try:
        found = inflated(packed, most)
    except zlib.error as error:
        raise MalformedMessage(f"damaged: {error}") from None
    if found is None:
        raise MalformedMessage(f"cut short, more than {most} bytes inflated, or there is more behind it")
    return found


def _other_version(version: object) -> OtherVersion:
    error = OtherVersion(
        f"protocol version {reprlib.repr(version)}, this program speaks {PROTOCOL_VERSION}",
        remedy="upgrade fedkrso on the older side",
    )
    error.version = version if isinstance(version, int) else 0
    return error
