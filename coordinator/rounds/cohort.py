# SPDX-License-Identifier: Apache-2.0
"""Who is invited to a round: a pure function of the nodes online, the size wanted, and the seed or who was there
before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

__all__ = ["choose_cohort", "next_in_turn"]


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


def next_in_turn(online: Iterable[str], size: int, last: Mapping[str, int]) -> tuple[str, ...]:
    """The nodes that have waited longest, sorted by node id: who had no turn yet comes first, of equals the first id.

    So nodes go around; who is not online is passed over, and comes first when it is back.

    Args:
        online: Who may be invited.
        size: How many; 0 for all.
        last: The last round in which each node had its turn; nodes without one are not in it.

    Example:
        >>> next_in_turn(["a", "b", "c"], 1, {"a": 3, "c": 2}), next_in_turn(["a", "c"], 1, {"a": 3, "c": 2})
        (('b',), ('c',))
    """
    nodes = sorted(set(online), key=lambda node: (last.get(node, 0), node))
    return tuple(sorted(nodes[:size] if size else nodes))
