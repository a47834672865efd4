# SPDX-License-Identifier: Apache-2.0
"""Messages to bytes and back: msgpack with limits between bytes and objects, msgspec between objects and typed messages.

Whatever arrives, `decode` gives an envelope or raises `MalformedMessage`, and allocates no more than the bytes it was given.
"""

from __future__ import annotations

from typing import Final

import msgpack
import msgspec

from fedcore.errors import MalformedMessage
from fedcore.wire.messages import PROTOCOL_VERSION, Envelope

__all__ = ["MAX_MESSAGE_BYTES", "decode", "encode"]

MAX_MESSAGE_BYTES: Final = 4 * 2**20


def encode(envelope: Envelope) -> bytes:
    """An envelope as msgpack."""
    packed = msgpack.packb(msgspec.to_builtins(envelope, builtin_types=(bytes,)))
    assert isinstance(packed, bytes)
    return packed


def decode(payload: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Envelope:
    """Bytes as an envelope.

    Raises:
        MalformedMessage: Too large, not msgpack, not a message, or of another protocol version.

    Example:
        >>> from fedcore.wire.messages import Commit
        >>> envelope = Envelope(run="r", round=1, node="n", body=Commit("t"))
        >>> decode(encode(envelope)) == envelope
        True
    """
    if len(payload) > max_bytes:
        raise MalformedMessage(f"{len(payload)} bytes where {max_bytes} are allowed")
    try:
        raw = msgpack.unpackb(payload, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise MalformedMessage(f"not msgpack: {error}") from None
    if isinstance(raw, dict) and raw.get("version") != PROTOCOL_VERSION:
        raise MalformedMessage(
            f"protocol version {raw.get('version')!r}, this program speaks {PROTOCOL_VERSION}", remedy="update the older side"
        )
    try:
        return msgspec.convert(raw, Envelope, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise MalformedMessage(f"not a message: {error}") from None
