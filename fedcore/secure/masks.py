# SPDX-License-Identifier: Apache-2.0
"""Masks, and how they are put on: without NumPy, in the light agent, chunk by chunk.

A mask is the key stream of ChaCha20 (RFC 8439, from libsodium), one nonce for each chunk of the file. A file is lanes:
little-endian integers of 4 to 8 bytes, added modulo 2**(8 * bytes). Python adds a whole chunk of them as one large
integer: the top bit of every lane is left out of the addition, so that nothing is carried into the next lane, and put
right by exclusive or. That takes about as long as making the key stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Final

from nacl.bindings import crypto_aead_chacha20poly1305_ietf_encrypt

__all__ = ["CHUNK_BYTES", "Lanes", "key_stream", "masked_chunks"]

CHUNK_BYTES: Final = 65_520
"""A whole number of lanes of each size."""
_ZEROS: Final = bytes(CHUNK_BYTES)


def key_stream(seed: bytes, chunk: int, size: int = CHUNK_BYTES) -> bytes:
    """Bytes of a mask.

    Args:
        seed: 32 bytes, the key.
        chunk: Which chunk of the file, from 0: the nonce.
        size: Bytes of it, at most `CHUNK_BYTES`.

    Example:
        >>> key_stream(bytes(32), 0, 4).hex()
        '9f07e7be'
    """
    # PyNaCl has no bare key stream: zeros are encrypted, and the tag behind them left out.
    return crypto_aead_chacha20poly1305_ietf_encrypt(_ZEROS[:size], None, chunk.to_bytes(12, "little"), seed)[:size]


class Lanes:
    """Adds and subtracts chunks of lanes.

    Args:
        lane_bytes: Of a lane, 4 to 8.

    Example:
        >>> lanes = Lanes(4)
        >>> lanes.sum(bytes.fromhex("ffffffff" "01000000"), [(1, bytes.fromhex("02000000" "03000000"))]).hex()
        '0100000004000000'
        >>> lanes.sum(bytes.fromhex("01000000"), [(-1, bytes.fromhex("03000000"))]).hex()
        'feffffff'
    """

    def __init__(self, lane_bytes: int) -> None:
        self.lane_bytes = lane_bytes
        self._tops: dict[int, int] = {}

    def sum(self, chunk: bytes, others: Iterable[tuple[int, bytes]]) -> bytes:
        """A chunk with others of the same size added, or taken away.

        Args:
            chunk: Whole lanes.
            others: Each with its sign.
        """
        size = len(chunk)
        top, total = self._top(size), int.from_bytes(chunk, "little")
        low = ((1 << 8 * size) - 1) ^ top
        for sign, other in others:
            number = int.from_bytes(other, "little")
            if sign > 0:
                total = ((total & low) + (number & low)) ^ ((total ^ number) & top)
            else:
                total = ((total | top) - (number & low)) ^ ((total ^ number ^ top) & top)
        return total.to_bytes(size, "little")

    def _top(self, size: int) -> int:
        if size not in self._tops:
            self._tops[size] = int.from_bytes(
                (bytes(self.lane_bytes - 1) + b"\x80") * (size // self.lane_bytes), "little"
            )
        return self._tops[size]


def masked_chunks(file: BinaryIO, lane_bytes: int, masks: Sequence[tuple[int, bytes]], at_once: int) -> Iterator[bytes]:
    """A file of lanes, masked, in order; an empty piece wherever so many chunks of masks have been made that whoever
    asks should look around.

    Args:
        file: At its first lane.
        lane_bytes: Of a lane.
        masks: The sign and the seed of each.
        at_once: Chunks of masks in between.
    """
    lanes, made, number = Lanes(lane_bytes), 0, 0
    while chunk := file.read(CHUNK_BYTES):
        for start in range(0, max(1, len(masks)), at_once):
            some = masks[start : start + at_once]
            chunk = lanes.sum(chunk, ((sign, key_stream(seed, number, len(chunk))) for sign, seed in some))
            made += len(some)
            if made >= at_once:
                made = 0
                yield b""
        yield chunk
        number += 1
