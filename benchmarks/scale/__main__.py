# SPDX-License-Identifier: Apache-2.0
"""Rounds of very many simulated nodes through engines that are made of several processes, all on one machine: three
nats-servers as one broker, PostgreSQL for the ledger, workers that add updates up, and an S3 server for published
states.

    python -m benchmarks.scale [--nodes 1000] [--rounds 2] [--workers 4] [--rank 2] [--seeds 1] [--bits 4]
        [--spread 300] [--qos 0] [--uploads]
    python -m benchmarks.scale --one [--tls [--uploads]] ...

Nodes are those of `benchmarks.fleet_node`: real agents without a worker. With `--one` the same fleet goes through one
nats-server, SQLite and a coordinator that does all by itself. A line of JSON: rounds a minute, memory and processor
time of every process, and whether every update was counted exactly once and all nodes end with the digest that one
process comes to by additions alone."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.fleet import node_names
from benchmarks.fleet_row import Load
from benchmarks.scale.engines import Engines, One, Several
from benchmarks.scale.run import ScaleRun, Shape

__all__ = ["main"]

_RAM_DISK = Path("/dev/shm")  # noqa: S108 - the nodes' disks; a private folder is made in it


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8, 16))
    parser.add_argument("--replicas", type=int, default=3, help="Of what the nats-servers keep.")
    parser.add_argument("--qos", type=int, default=1, choices=(0, 1), help="Of MQTT, at both sides.")
    parser.add_argument("--uploads", action="store_true", help="Updates go to the S3 server too.")
    parser.add_argument("--tls", action="store_true", help="Of --one: mosquitto, TLS, signatures, and S3 for states.")
    parser.add_argument("--one", action="store_true", help="One broker, SQLite, no workers, no S3.")
    parser.add_argument("--spread", type=float, default=0.0, help="Seconds within which nodes log in; 0: at once.")
    parser.add_argument("--folder", type=Path, help="Keep logs and ledgers here.")
    parser.add_argument("--seconds", type=float, default=1800.0, help="After which it is given up.")
    options = parser.parse_args()
    if options.tls != options.one and (options.tls or options.uploads):
        parser.error("--tls is of --one, and with it --uploads needs --tls")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    load = Load(options.nodes, options.rounds, spread_seconds=options.spread)
    shape = Shape(options.rank, options.seeds, options.bits)
    users = ["coordinator", *node_names(options.nodes)]
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        disks = stack.enter_context(tempfile.TemporaryDirectory(dir=_RAM_DISK if _RAM_DISK.is_dir() else folder))
        engines: Engines = (
            One(folder, users, options.qos, tls=options.tls, uploads=options.uploads)
            if options.one
            else Several(folder, users, options.workers, options.replicas, options.qos, uploads=options.uploads)
        )
        stack.callback(engines.stop)
        run = ScaleRun(load, shape, folder, Path(disks), engines)
        stack.callback(run.close)
        sys.stdout.write(json.dumps(run.run(options.seconds)) + "\n")


if __name__ == "__main__":
    main()
