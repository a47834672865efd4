# SPDX-License-Identifier: Apache-2.0
"""What a transferred object is, before any of it has arrived."""

from __future__ import annotations

import msgspec

from fedcore.fields.checked import MAX_CHUNKS, ChunkBytes, FileName, ObjectBytes, Sha256

__all__ = ["Manifest"]


class Manifest(msgspec.Struct, frozen=True):
    """An object's name, size and SHA-256 (hex), and the size of the chunks it travels in.

    Raises:
        ValueError: More chunks than a bitmap has bits for (a MalformedMessage where it came from the wire).
    """

    name: FileName
    size_bytes: ObjectBytes
    sha256: Sha256
    chunk_bytes: ChunkBytes

    def __post_init__(self) -> None:
        if self.chunk_bytes < 1 or self.chunks > MAX_CHUNKS:
            raise ValueError(
                f"{self.size_bytes} bytes in chunks of {self.chunk_bytes} are more than {MAX_CHUNKS} chunks"
            )

    @property
    def chunks(self) -> int:
        """Number of chunks; an empty object has one empty chunk."""
        return max(1, -(-self.size_bytes // self.chunk_bytes))
