# SPDX-License-Identifier: Apache-2.0
"""Runs of a few simulated nodes through three nats-servers, PostgreSQL, workers and an S3 server, whose processes are
killed (`kill -9`) at random and started again:

    python -m benchmarks.scale.kills [--runs 60] [--first 0] [--out kills.jsonl]

Every run must end with the digest that follows from additions alone, with every node's update in every round exactly
once. A line of JSON each; what is in the file already is not run again."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from benchmarks.fleet import node_names
from benchmarks.fleet_node import Counts
from benchmarks.fleet_row import Load
from benchmarks.scale.engines import Several
from benchmarks.scale.run import ScaleRun, Shape
from fedcore.errors import RunError, TransportError

__all__ = ["KillRun", "main"]

_KINDS = ("coordinator", "nats", "worker", "s3", "postgres")
_AGAIN, _MOST_AGAIN = "coordinator begun again", 10
_PASSES = (RunError.exit_code, TransportError.exit_code)
_WORKERS, _PIECES_OF_WORK_SECONDS = 2, 1.0
_RUNS_OF_ENGINES = 5
_STRIKES, _WITHIN_SECONDS = (3, 6), 12.0


class KillRun(ScaleRun):
    """See `ScaleRun`.

    Args:
        seed: Decides what is killed, and when.
        load: How many nodes and rounds.
        folder: For the coordinator and logs; the folder of runs of the engines' workers.
        disks: For the nodes' own folders.
        engines: Running; some of them are killed.
    """

    def __init__(self, seed: int, load: Load, folder: Path, disks: Path, engines: Several) -> None:
        super().__init__(load, Shape(2, 1, 4), folder, disks, engines, name=f"fleet{seed}")
        self._several, self._chance = engines, Random(f"kills {seed}")  # noqa: S311 (what is killed when)
        strikes = self._chance.randint(*_STRIKES)
        self._strikes = sorted(
            (self._chance.uniform(0.0, _WITHIN_SECONDS), self._chance.choice(_KINDS)) for _ in range(strikes)
        )
        self._leader: subprocess.Popen[bytes] | None = None
        self.done: Counter[str] = Counter()

    def run(self, timeout_seconds: float) -> dict[str, Any]:
        """Start everything, kill, wait for the end, and say what it came to."""
        began = time.monotonic()
        self._lead()
        parts = [self._start_nodes(0)]
        nodes = self._processes[-1]
        summary = self.folder / self.name / "summary.json"
        while time.monotonic() < began + timeout_seconds:
            assert self._leader is not None
            if nodes.poll() is not None and self._leader.poll() is not None and not self._strikes:
                break
            if self._strikes and time.monotonic() - began >= self._strikes[0][0]:
                self._strike(self._strikes.pop(0)[1], over=summary.exists())
            if self._leader.poll() in _PASSES and self.done[_AGAIN] < _MOST_AGAIN:
                # It waits for a database that goes away, but not without end for one that is away as it starts; nor
                # for nats-servers that do not let it in. Whatever looks after it begins it again.
                self.done[_AGAIN] += 1
                self._lead()
            if nodes.poll() not in (None, 0) or self._leader.poll() not in (None, 0, -signal.SIGKILL):
                raise RuntimeError(f"ended with {nodes.poll()} and {self._leader.poll()}: {self._tails()}")
            time.sleep(0.05)
        if not summary.exists() or nodes.poll() != 0:
            raise RuntimeError(f"no end after {timeout_seconds:.0f} s: {self._tails()}")
        counts = [msgspec.json.decode(part.read_bytes(), type=Counts) for part in parts]
        row = self.row(json.loads(summary.read_text()), counts, began, time.monotonic())
        kept = ("seconds", "updates_committed", "exactly_once", "digest_of_one_process", "nodes_with_the_digest")
        return {
            **{key: row[key] for key in kept},
            **{f"kill {kind}": self.done[kind] for kind in _KINDS},
            _AGAIN: self.done[_AGAIN],
        }

    def _lead(self) -> None:
        """Start the coordinator, or go on with its run."""
        run = self.folder / self.name
        begun = (run / "ledger.json").exists()
        job = ("run", str(self.folder / "job.toml")) if not begun else ("resume", self.name)
        words = ("coordinator", job[0], job[1], "--runs", str(self.folder), "--json")
        self._leader = self._start("coordinator", "-c", "from fedcore.command import main; main()", *words)

    def _strike(self, kind: str, *, over: bool) -> None:
        """Kill one of a kind, and start it again after a while."""
        several, pause, leader = self._several, self._chance.choice((0.0, 0.3, 1.5)), self._leader
        number = self._chance.randrange(1000)
        if kind == "coordinator":
            if over or leader is None or leader.poll() is not None:
                return
            leader.kill()
            leader.wait()
            time.sleep(pause)
            self._lead()
        elif kind == "nats":
            several.nats.kill(number % 3)
            time.sleep(pause)
            several.nats.start(number % 3)
        elif kind == "worker":
            worker = several.workers.pop(number % len(several.workers))
            worker.kill()
            worker.wait()
            time.sleep(pause)
            several.start_worker()
        else:
            engine = several.s3 if kind == "s3" else several.postgres
            engine.kill()
            time.sleep(pause)
            engine.start()
        self.done[kind] += 1


def _one(seed: int, load: Load, folder: Path, engines: Several, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as disks, contextlib.ExitStack() as stack:
        run = KillRun(seed, load, folder, Path(disks), engines)
        stack.callback(run.close)
        try:
            return {"seed": seed, **run.run(seconds)}
        except Exception as error:  # noqa: BLE001 - a run that fails is a finding, not the end of the series
            return {"seed": seed, "error": f"{type(error).__name__}: {error}"[:4000]}


def main() -> None:
    """Run what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--qos", type=int, default=1, choices=(0, 1), help="Of MQTT, at both sides.")
    parser.add_argument("--seconds", type=float, default=600.0, help="After which a run is given up.")
    parser.add_argument("--out", type=Path, default=Path("kills.jsonl"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    load = Load(options.nodes, options.rounds, train_seconds=_PIECES_OF_WORK_SECONDS)
    users = ["coordinator", *node_names(options.nodes)]
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = {row["seed"] for row in map(json.loads, lines) if "error" not in row}
    left = [seed for seed in range(options.first, options.first + options.runs) if seed not in known]
    # nats-servers keep the sessions of earlier runs, three groups of Raft for each node's subscription.
    for first in range(0, len(left), _RUNS_OF_ENGINES):
        with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
            folder = Path(temporary)
            engines = Several(folder, users, _WORKERS, qos=options.qos)
            stack.callback(engines.stop)
            for seed in left[first : first + _RUNS_OF_ENGINES]:
                row = _one(seed, load, folder, engines, options.seconds)
                with options.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
