# SPDX-License-Identifier: Apache-2.0
"""Which chunks are there: one bit a chunk, least significant bit first."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["Bitmap"]


class Bitmap:
    """A set of chunk numbers below `size`.

    Example:
        >>> bitmap = Bitmap(10)
        >>> bitmap.add(3), list(bitmap.missing())[:4]
        (True, [0, 1, 2, 4])
    """

    def __init__(self, size: int, data: bytes = b"") -> None:
        self.size = size
        self._bits = bytearray(-(-size // 8))
        self._count = 0
        # Bits are only ever added: below this byte every chunk is there.
        self._full_bytes = 0
        self.update(data)

    def __contains__(self, index: int) -> bool:
        return 0 <= index < self.size and bool(self._bits[index // 8] >> (index % 8) & 1)

    def __len__(self) -> int:
        return self._count

    def add(self, index: int) -> bool:
        """Add a chunk; whether it was new."""
        if not 0 <= index < self.size or index in self:
            return False
        self._bits[index // 8] |= 1 << (index % 8)
        self._count += 1
        return True

    def update(self, data: bytes) -> bool:
        """Add all chunks of another bitmap's bytes; whether any was new."""
        before = self._count
        # Foreign bytes may be too long or set padding bits: only real chunks count.
        foreign = int.from_bytes(data[: len(self._bits)], "little") & ((1 << self.size) - 1)
        bits = int.from_bytes(self._bits, "little") | foreign
        self._bits[:] = bits.to_bytes(len(self._bits), "little")
        self._count = bits.bit_count()
        return self._count > before

    @property
    def full(self) -> bool:
        """Every chunk is there."""
        return self._count == self.size

    def missing(self) -> Iterator[int]:
        """Chunks that are not there, ascending."""
        while self._full_bytes < len(self._bits) and self._bits[self._full_bytes] == 0xFF:
            self._full_bytes += 1
        return (index for index in range(8 * self._full_bytes, self.size) if index not in self)

    def tobytes(self) -> bytes:
        """For the wire or the disk."""
        return bytes(self._bits)
