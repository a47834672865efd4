# SPDX-License-Identifier: Apache-2.0
"""What a transferred object is, before any of it has arrived."""

from __future__ import annotations

import msgspec

__all__ = ["Manifest"]


class Manifest(msgspec.Struct, frozen=True):
    """An object's name, size and SHA-256 (hex), and the size of the chunks it travels in."""

    name: str
    size_bytes: int
    sha256: str
    chunk_bytes: int

    @property
    def chunks(self) -> int:
        """Number of chunks; an empty object has one empty chunk."""
        return max(1, -(-self.size_bytes // self.chunk_bytes))
