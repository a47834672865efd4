# SPDX-License-Identifier: Apache-2.0
"""Which committed updates count in a round. Where rounds are buffered, some were trained for an earlier one; all others
count in the round that they were trained for."""

from __future__ import annotations

from coordinator.store.ledger import Ledger, UpdateRow

__all__ = ["counting"]


def counting(ledger: Ledger, server_round: int, behind: int = 0) -> list[UpdateRow]:
    """The updates that count in a round, by node.

    Args:
        ledger: Of the run.
        server_round: The round.
        behind: Rounds by which what they were trained for may be behind.
    """
    rows = (row for start in range(max(1, server_round - behind), server_round + 1) for row in ledger.updates(start))
    return sorted((row for row in rows if row.counts_in == server_round), key=lambda row: row.header.node)
