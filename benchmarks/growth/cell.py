# SPDX-License-Identifier: Apache-2.0
"""One measurement in a process of its own: `python -m benchmarks.growth.cell nodes 300` or `... rounds 1000`. Prints
JSON."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.growth.crowd import Crowd

__all__ = ["main"]

_RAM_DISK = Path("/dev/shm")  # noqa: S108 - a private folder is made in it
_TELLS = 5
_IDLE_SECONDS, _TICK_SECONDS = 3.0, 0.25
_NODES_OF_ROUNDS = 100
# A mean of so many rounds is one point.
_WINDOW = 20


def by_nodes(folder: Path, nodes: int) -> dict[str, float]:
    """What a message of each kind takes of the coordinator, and time itself; one run of two rounds.

    Args:
        folder: An empty one.
        nodes: How many.

    Returns:
        Processor microseconds for each message, milliseconds for a tick, kilobytes of memory for each node.
    """
    process, found = psutil.Process(), dict[str, float]()
    with Crowd(folder, nodes, 2) as crowd:
        before = process.memory_info().rss
        plans = []
        found["status: us"] = 1e6 * crowd.taken(lambda: plans.append(crowd.join())) / nodes

        def tell() -> None:
            for step in range(_TELLS):
                crowd.tell(-1, "", plans[-1], step)

        found["telemetry: us"] = 1e6 * crowd.taken(tell) / (_TELLS * nodes)
        found["tick: ms"] = 1e3 * crowd.taken(lambda: time.sleep(_IDLE_SECONDS)) * _TICK_SECONDS / _IDLE_SECONDS
        found["memory: KB a node"] = (process.memory_info().rss - before) / 1e3 / nodes
        found["update, with its share of the round's end: us"] = (
            1e6 * crowd.taken(lambda: plans.append(crowd.update(plans[-1]))) / nodes
        )
        last = plans[-1].objects[-1]
        crowd.tell(last.version, last.digest, plans[-1], 0)
        crowd.settled()
        found["word of what a node holds: us"] = (
            1e6 * crowd.taken(lambda: crowd.report(last.version, last.digest)) / nodes
        )
        found["word of rest: us"] = 1e6 * crowd.taken(lambda: crowd.decline(plans[-1])) / nodes
        plans.append(crowd.update(plans[-1]))
        crowd.settled()
        last = plans[-1].objects[-1]
        began = crowd.processor_seconds()
        # The last of them ends the run, and with it the thread whose time is read.
        crowd.report(last.version, last.digest, but=1)
        crowd.settled()
        found["last word: us"] = 1e6 * (crowd.processor_seconds() - began) / (nodes - 1)
        crowd.report(last.version, last.digest)
        crowd.ended()
    return found


def by_rounds(folder: Path, rounds: int) -> list[dict[str, float]]:
    """What a round of 100 nodes takes, as there are more and more of them.

    Args:
        folder: An empty one.
        rounds: How many.

    Returns:
        A row every some rounds: processor milliseconds of a round and microseconds of a telemetry then, bytes of one
        piece of news to the dashboard, of the picture in `view.json`, and of the ledger for each round.
    """
    found, nodes = [], _NODES_OF_ROUNDS
    with Crowd(folder, nodes, rounds + 1) as crowd:
        plan = crowd.join()
        seconds, wall = [], time.monotonic()
        for number in range(1, rounds + 1):
            plans = [plan]
            seconds.append(crowd.taken(lambda plans=plans: plans.append(crowd.update(plans[0]))))  # type: ignore[misc]
            plan = plans[-1]
            if number % _WINDOW and number != rounds:
                continue
            last = plan.objects[-1]
            tells = crowd.taken(lambda plan=plan, last=last: crowd.tell(last.version, last.digest, plan, 1))  # type: ignore[misc]
            time.sleep(1.1)
            crowd.settled()
            run = folder / "growth"
            found.append(
                {
                    "rounds": number,
                    "round: ms": 1e3 * sum(seconds[-_WINDOW:]) / len(seconds[-_WINDOW:]),
                    "telemetry: us": 1e6 * tells / nodes,
                    "news to the dashboard: KB": crowd.dashboard.handed_on[-1] / 1e3,
                    "view.json: KB": (run / "view.json").stat().st_size / 1e3,
                    "ledger: KB a round": (run / "ledger.sqlite").stat().st_size / 1e3 / number,
                    "wall: s": time.monotonic() - wall,
                }
            )
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("by", choices=("nodes", "rounds"))
    parser.add_argument("size", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=_RAM_DISK if _RAM_DISK.is_dir() else None) as temporary:
        measure = by_nodes if options.by == "nodes" else by_rounds
        sys.stdout.write(json.dumps(measure(Path(temporary), options.size)) + "\n")


if __name__ == "__main__":
    main()
