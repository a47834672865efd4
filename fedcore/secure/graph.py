# SPDX-License-Identifier: Apache-2.0
"""Who masks with whom, and how many shares give a secret back.

With few nodes everybody masks with everybody (Bonawitz et al., 2017). With many, each has k neighbours (SecAgg+: Bell
et al., arXiv 2003.14412, section 3): nodes stand on a ring in an order that a hash over all keys decides, and the
neighbours are the k / 2 on either side. A node's shares lie with its neighbours and itself, h = k + 1 holders, and any
t of them give its secrets back."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Final

__all__ = ["degree_for", "neighbours", "threshold_of"]

_PRIVACY_BITS: Final = 40
"""A round betrays somebody with a probability of at most 2**-40."""
_LOSS_BITS: Final = 20
"""A round is lost with a probability of at most 2**-20."""
_COLLUDING, _LOST = 0.1, 0.1
"""Nodes that tell the coordinator all they know; nodes that are lost in a round."""


def threshold_of(share: float, holders: int) -> int:
    """How many of a secret's holders give it back: more than `share` of them.

    Args:
        share: From 0.5 up, below 1.
        holders: How many there are.

    Example:
        >>> [threshold_of(2 / 3, holders) for holders in (3, 4, 6, 30)]
        [3, 3, 5, 21]
        >>> [threshold_of(0.5, holders) for holders in (3, 4, 6, 30)]
        [2, 3, 4, 16]
    """
    return min(holders, math.floor(share * holders + 1e-9) + 1)


def neighbours(count: int, seed: bytes, degree: int) -> list[tuple[int, ...]]:
    """Each node's neighbours, by number, in ascending order; whoever is somebody's neighbour has them as one too.

    Args:
        count: Of nodes, numbered from 0.
        seed: Decides their order on the ring.
        degree: k; 0, or as many as there are others: everybody.

    Example:
        >>> neighbours(3, b"", 0)
        [(1, 2), (0, 2), (0, 1)]
        >>> [len(those) for those in neighbours(9, b"any", 4)] == [4] * 9
        True
    """
    if not 0 < degree < count - 1:
        return [tuple(other for other in range(count) if other != node) for node in range(count)]

    def place(node: int) -> bytes:
        return hashlib.sha256(b"fedkrso ring 1\0" + seed + node.to_bytes(4, "little")).digest()

    ring = sorted(range(count), key=place)
    found: list[tuple[int, ...]] = [()] * count
    for at, node in enumerate(ring):
        near = {ring[(at + step) % count] for side in range(1, degree // 2 + 1) for step in (side, -side)}
        found[node] = tuple(sorted(near))
    return found


@lru_cache(maxsize=64)
def degree_for(count: int, share: float) -> int:
    """The smallest even k that does for so many nodes; 0 where only everybody does.

    With a tenth of the nodes colluding with the coordinator, and a tenth lost, each of these fails with at most the
    probability said, by a union bound over all nodes (hypergeometric tails, computed exactly):

    - no node has 2 t - h colluding neighbours or more, so that t holders can be shown one list of survivors, and no t
      others another (2**-40 together);
    - no k / 2 nodes that follow each other on the ring are all colluding or lost, so the others' masks hang together
      (2**-40);
    - no node has more than h - t lost holders (2**-20): the round would be lost, not betrayed.

    Args:
        count: Of nodes.
        share: Of the threshold.

    Example:
        >>> degree_for(30, 2 / 3), degree_for(1000, 2 / 3) < 200
        (0, True)
    """
    for degree in range(2, count - 1, 2):
        holders = degree + 1
        threshold = threshold_of(share, holders)
        apart = count * (_COLLUDING + _LOST) ** (degree / 2)
        if (
            apart > 2.0**-_PRIVACY_BITS
            or min((2 * threshold - holders) / _COLLUDING, (holders - threshold) / _LOST) <= degree
        ):
            # What is to be improbable is what has to be expected.
            continue
        betrayed = count * _tail(count - 1, math.ceil(_COLLUDING * count), degree, 2 * threshold - holders)
        lost = count * _tail(count - 1, math.ceil(_LOST * count), degree, holders - threshold + 1)
        if betrayed <= 2.0**-_PRIVACY_BITS and lost <= 2.0**-_LOSS_BITS:
            return degree
    return 0


def _tail(count: int, marked: int, drawn: int, least: int) -> float:
    """The probability that of some drawn at least so many are marked."""
    if least <= 0:
        return 1.0
    ways = math.comb(count, drawn)
    some = sum(
        math.comb(marked, number) * math.comb(count - marked, drawn - number)
        for number in range(least, min(marked, drawn) + 1)
    )
    return some / ways
