# SPDX-License-Identifier: Apache-2.0
"""Light nodes of a fleet, each a process that can be killed: real clients and agents over real links, with no worker
behind them.

    python -m tests.fleet.light_nodes SECONDS NODE.toml...

One process loads what they need and is forked into one for each file. A node's process id is in its folder's lock."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from benchmarks.fleet_contents import Bodies
from benchmarks.fleet_node import Counts, SimulatedSupervisor
from devices.kinds.simulated import Simulated, Step
from edge_client.agent.resting import Surroundings
from edge_client.fleet.client import FleetClient, Parts
from edge_client.node import Node
from fedcore.config.reading import load_config
from fedcore.device.readings import Readings
from fedcore.system.processes import die_with_parent
from fedcore.worker.looking import Look

__all__ = ["main"]


def _look(look: Look) -> tuple[str, ...]:
    """A node without a worker has no data to be looked at."""
    return ()


def _run(node: Node, train_seconds: float) -> None:
    def say(line: str) -> None:
        sys.stdout.write(f"{node.node}: {line}\n")
        sys.stdout.flush()

    supervisor = partial(SimulatedSupervisor, Bodies(), Counts(), train_seconds)
    surroundings = Surroundings(Simulated([Step(0.0, Readings())]))
    FleetClient(node, on_event=say, parts=Parts(supervisor, _look, surroundings)).run()


def main() -> None:
    """Run each node until it is killed."""
    nodes = [load_config(Path(file), Node) for file in sys.argv[2:]]
    for node in nodes:
        if os.fork() == 0:
            die_with_parent()
            _run(node, float(sys.argv[1]))
            return
    for _ in nodes:
        os.wait()


if __name__ == "__main__":
    main()
