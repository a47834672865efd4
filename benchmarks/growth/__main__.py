# SPDX-License-Identifier: Apache-2.0
"""How the coordinator's processor time and memory grow with nodes, and with rounds: the real coordinator over a broker
in memory, nodes simulated (`benchmarks.growth.crowd`), each size in a process of its own.

    python -m benchmarks.growth [--nodes 100,300,1000,3000] [--rounds 1000] [--before CHECKOUT]

Prints what a message of each kind takes, a tick, a node's memory, with the law that fits: the exponent of what a size
costs altogether (1 is linear: messages come from nodes, so a message that costs the same whatever their number is), and
the line a + b n through what each costs. Times are of the coordinator's thread alone. With --before, another checkout
is measured in turn with this one."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.growth.law import law_of

__all__ = ["main"]

_HERE = Path(__file__).resolve().parents[2]
# Ticks come with time, not with nodes, and memory is for each node already.
_BY_SIZE = ("tick: ms",)


def _cell(checkout: Path, by: str, size: int) -> Any:
    # The measurement is this checkout's, whatever it measures: `benchmarks` has no `__init__.py`, so both are seen.
    path = os.pathsep.join([str(checkout), str(_HERE)])
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.growth.cell", by, str(size)],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{by} {size}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _nodes(sizes: list[int], checkouts: dict[str, Path]) -> None:
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in checkouts}
    for size in sizes:
        for name, checkout in checkouts.items():
            found[name][size] = _cell(checkout, "nodes", size)
            sys.stderr.write(f"{name}, {size} nodes: {json.dumps(found[name][size])}\n")
    _say(f"| | | {' | '.join(f'{size:,} nodes' for size in sizes)} | exponent | line |")
    _say("|---|---|" + "---|" * (len(sizes) + 2))
    for row in found["now"][sizes[0]]:
        for name, cells in found.items():
            costs = [cells[size][row] for size in sizes]
            fitted = "| - | - |"
            if len(sizes) > 1:
                law = law_of(sizes, costs)
                exponent = law.exponent + (row not in _BY_SIZE)
                fitted = f"| {exponent:.2f} | {law.fixed:.3g} + {1000 * law.each:.3g} a thousand |"
            _say(f"| {row} | {name} | {' | '.join(f'{cost:,.4g}' for cost in costs)} {fitted}")
        if len(found) == 2:
            ratios = [found["now"][size][row] / found["before"][size][row] for size in sizes]
            _say(f"| | ratio | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} | | |")


def _rounds(rounds: int, checkouts: dict[str, Path]) -> None:
    for name, checkout in checkouts.items():
        cells = _cell(checkout, "rounds", rounds)
        shown = [cells[0], *cells[len(cells) // 4 :: max(1, len(cells) // 4)], cells[-1]]
        shown = list({cell["rounds"]: cell for cell in shown}.values())
        heads = [f"round {cell['rounds']:,.0f}" for cell in shown]
        _say(f"\n| {name}, 100 nodes | {' | '.join(heads)} | line |")
        _say("|---|" + "---|" * (len(shown) + 1))
        for row in [row for row in cells[0] if row not in ("rounds", "wall: s")]:
            costs, line = " | ".join(f"{cell[row]:,.4g}" for cell in shown), "-"
            if len(cells) > 1:
                law = law_of([cell["rounds"] for cell in cells], [cell[row] for cell in cells])
                line = f"{law.fixed:.3g} + {1000 * law.each:.3g} a thousand rounds"
            _say(f"| {row} | {costs} | {line} |")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="100,300,1000,3000", help="Numbers of nodes; empty for none.")
    parser.add_argument("--rounds", type=int, default=1000, help="Of 100 nodes; 0 for none.")
    parser.add_argument("--before", type=Path, help="Another checkout to compare with.")
    options = parser.parse_args()
    checkouts = {} if options.before is None else {"before": options.before.resolve()}
    checkouts["now"] = _HERE
    if options.nodes:
        _nodes([int(size) for size in options.nodes.split(",")], checkouts)
    if options.rounds:
        _rounds(options.rounds, checkouts)


if __name__ == "__main__":
    main()
