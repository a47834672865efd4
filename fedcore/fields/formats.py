# SPDX-License-Identifier: Apache-2.0
"""Versions of what crosses the wire, each said once; and who has to be upgraded where two sides do not agree.

Whoever changes the bytes of one of these raises its number: `tests/golden/test_formats.py` keeps bytes of each and
fails until then. Ledger and run folder have numbers of their own where they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["PROTOCOL", "PUBLISHED_STATE", "SNAPSHOT", "SPOKEN", "UPDATE", "disagreement"]

PROTOCOL: Final = 5
"""Messages and their envelope."""
UPDATE: Final = 2
"""A participant's update."""
PUBLISHED_STATE: Final = 2
"""What a round learned, and its difference to the version before."""
SNAPSHOT: Final = 1
"""A merged base."""
SPOKEN: Final[Mapping[str, int]] = {
    "protocol": PROTOCOL,
    "update": UPDATE,
    "published state": PUBLISHED_STATE,
    "snapshot": SNAPSHOT,
}
"""What this program reads and writes, as a node and a coordinator tell each other when they meet."""


def disagreement(node: Mapping[str, int], coordinator: Mapping[str, int]) -> str:
    """Which side has to be upgraded; empty where both read and write the same.

    Args:
        node: Formats that the node told.
        coordinator: Formats that the coordinator told.

    Example:
        >>> disagreement({"protocol": 4}, {"protocol": 5})
        'node speaks protocol 4, coordinator 5: upgrade fedkrso on the node'
        >>> disagreement(SPOKEN, SPOKEN)
        ''
    """
    for name in (*coordinator, *node):
        theirs, ours = node.get(name, 0), coordinator.get(name, 0)
        if theirs != ours:
            verb, older = "speaks" if name == "protocol" else "writes", "node" if theirs < ours else "coordinator"
            return f"node {verb} {name} {theirs}, coordinator {ours}: upgrade fedkrso on the {older}"
    return ""
