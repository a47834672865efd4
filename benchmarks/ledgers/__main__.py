# SPDX-License-Identifier: Apache-2.0
"""How long a ledger takes to keep a thing, in SQLite and in a database of PostgreSQL.

    python -m benchmarks.ledgers [--url postgresql://user@host/database] [--password-file F] [--times 200]

What is kept is what a round of 100 nodes keeps: updates one by one, events, and a closed round. The database gets a run
named `benchmark-...`, which is dropped again."""

from __future__ import annotations

import argparse
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from coordinator.store.folder import RunFolder
from coordinator.store.places import Database, begin_in, open_ledger
from coordinator.store.rows import RoundRow, UpdateRow
from coordinator.store.tables import TableLedger
from fedcore.round.header import UpdateHeader

__all__ = ["measure"]

_NODES = 100


def measure(ledger: TableLedger, times: int) -> dict[str, list[float]]:
    """Seconds that each kind of change took, until it was durable.

    Args:
        ledger: Where.
        times: How often each.
    """
    nodes = [f"node-{number}" for number in range(_NODES)]
    norms = dict.fromkeys(nodes, 1.5)

    def update(number: int) -> None:
        header = UpdateHeader(
            run="b",
            round=1 + number // _NODES,
            node=nodes[number % _NODES],
            version=0,
            examples=9,
            loss=1.0,
            seconds=1.0,
        )
        ledger.put_update(UpdateRow("transfer", "updates/1/node.bin", 874_000, header, 1.5))

    changes: dict[str, Callable[[int], object]] = {
        "an update": update,
        "an event": lambda number: ledger.note(1.0, "link", nodes[number % _NODES], "the connection was lost", 1),
        "a round of 100": lambda number: ledger.put_published(
            [], RoundRow(1 + number, tuple(nodes), 1, 2, 3.0, 0.5, norms=norms)
        ),
    }
    return {name: [_seconds(change, number) for number in range(times)] for name, change in changes.items()}


def _seconds(change: Callable[[int], object], number: int) -> float:
    began = time.perf_counter()
    change(number)
    return time.perf_counter() - began


def main() -> None:
    """Measure both, or SQLite alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--password-file")
    parser.add_argument("--times", type=int, default=200)
    options = parser.parse_args()
    databases: list[Database | None] = [None]
    if options.url is not None:
        databases.append(Database(url=options.url, password_file=options.password_file))
    for database in databases:
        with tempfile.TemporaryDirectory() as root:
            folder = RunFolder(Path(root))
            if database is not None:
                begin_in(folder, database, f"benchmark-{secrets.token_hex(4)}")
            ledger = open_ledger(folder, leads=True)
            for name, seconds in measure(ledger, options.times).items():
                middle, slow = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
                where = "SQLite" if database is None else "PostgreSQL"
                print(f"{where:10} {name:15} median {1e3 * middle:.2f} ms, one in 20 above {1e3 * slow:.2f} ms")
            ledger.drop_run()
            ledger.close()


if __name__ == "__main__":
    main()
