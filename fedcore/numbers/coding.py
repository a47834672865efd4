# SPDX-License-Identifier: Apache-2.0
"""How the numbers of an update's entry travel, as a plan says it (the agent imports this file; it must stay free of
NumPy).

What each kind is in bytes, and how it is made and read, is in `fedcore.numbers.codecs`.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

__all__ = ["Coding", "Kind", "Width", "most_index_bytes", "packed_shape"]

Kind = str
"""A registered payload codec. `integers`: with one power of two for each row. `floats`: bfloat16 or float32. `sparse`:
integers, only the largest of them. Any other: a codec of one's own, whose numbers take no more than those of
`sparse`."""

Width = Literal[4, 8, 16, 32]
"""Bits of a number."""


_WHOLE: Final = ("integers", "floats")


class Coding(NamedTuple):
    """Of one entry.

    Example:
        >>> Coding("sparse", 8, 0.01).kept(5000), Coding("sparse", 8, 0.01).most_bytes(5000)
        (50, 120)
    """

    kind: Kind
    bits: Width
    density: float = 1.0
    """Share of an entry's numbers that travel; 1 for `integers` and `floats`."""

    def __str__(self) -> str:
        words = {"integers": "bits", "floats": "bits as floats", "sparse": "bits, only the largest"}
        return f"{self.bits} {words.get(self.kind, f'bits as {self.kind}')}"

    def kept(self, numbers: int) -> int:
        """How many of an entry's numbers travel at most; never none."""
        return numbers if self.kind in _WHOLE else max(1, int(self.density * numbers))

    def most_bytes(self, numbers: int) -> int:
        """What an entry's numbers take at most, with the places of those that travel, without scales of rows."""
        values = -(-self.kept(numbers) * self.bits // 8)
        return values + (0 if self.kind in _WHOLE else most_index_bytes(self.kept(numbers), numbers))


def most_index_bytes(kept: int, numbers: int) -> int:
    """What the places of so many numbers take at most: a byte each, and one for each 255 that are left out."""
    return kept + numbers // 255 + 1


def packed_shape(side: int) -> tuple[int, int]:
    """Rows and columns of a symmetric matrix that travels as one half of its numbers (`fedcore.numbers.symmetric`).

    Args:
        side: Its rows, and its columns.

    Example:
        >>> packed_shape(4), packed_shape(5)
        ((2, 5), (3, 6))
    """
    return -(-side // 2), side + 1
