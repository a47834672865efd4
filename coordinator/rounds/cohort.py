# SPDX-License-Identifier: Apache-2.0
"""Who is invited to a round: a pure function of the nodes online, the size wanted and the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

__all__ = ["choose_cohort"]


def choose_cohort(online: Iterable[str], size: int, cohort_seed: int, server_round: int) -> tuple[str, ...]:
    """A uniformly drawn cohort, sorted by node id; all nodes where `size` is 0 or not below their number.

    Each node's place in the draw is a hash of (seed, round, node), so that who else is online does not shuffle the
    others.

    Example:
        >>> choose_cohort(["b", "a"], 0, 7, 1)
        ('a', 'b')
    """
    nodes = sorted(set(online))
    if size == 0 or size >= len(nodes):
        return tuple(nodes)

    def place(node: str) -> bytes:
        return hashlib.sha256(f"fedkrso cohort 1/{cohort_seed}/{server_round}/{node}".encode()).digest()

    return tuple(sorted(sorted(nodes, key=place)[:size]))
