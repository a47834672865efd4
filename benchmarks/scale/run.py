# SPDX-License-Identifier: Apache-2.0
"""One run of very many simulated nodes, watched."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.fleet import Fleet
from benchmarks.fleet_contents import expected_digest
from benchmarks.fleet_node import Counts
from benchmarks.fleet_row import SEED, Load
from benchmarks.scale.engines import Engines
from coordinator.store.folder import RunFolder
from coordinator.store.places import open_ledger
from fedcore.fields.types import Bits
from fedcore.methods.fedkrso import FedKRSOSettings

__all__ = ["ScaleRun", "Shape"]

_NODES_PER_PROCESS = 75
_LOOKS_SECONDS = 5.0
# A reading of twenty-five processes takes 0.15 s of a processor that they want.
_POLL_SECONDS, _SAMPLE_SECONDS = 0.5, 5.0


@dataclass(frozen=True)
class Shape:
    """What an update has.

    Attributes:
        rank: Of each subspace.
        seeds: How many subspaces.
        bits: Of a number.
    """

    rank: int
    seeds: int
    bits: Bits


class _Together:
    """Peak memory and processor time of a process and its children, also over its restarts."""

    def __init__(self) -> None:
        self.peak_bytes, self._seconds = 0, dict[int, float]()

    @property
    def processor_seconds(self) -> float:
        """Of all that were seen."""
        return sum(self._seconds.values())

    def sample(self, pid: int) -> None:
        """Take a reading; shared pages count once."""
        now = 0
        try:
            main = psutil.Process(pid)
            for process in (main, *main.children(recursive=True)):
                now += process.memory_full_info().pss
                times = process.cpu_times()
                self._seconds[process.pid] = times.user + times.system
        except psutil.Error:
            return
        self.peak_bytes = max(self.peak_bytes, now)


class ScaleRun(Fleet):
    """See `benchmarks.fleet.Fleet`.

    Args:
        load: How many nodes and rounds.
        shape: Of their updates.
        folder: For the coordinator and logs.
        disks: For the nodes' own folders.
        engines: Running.
        name: Of the run.
    """

    def __init__(
        self, load: Load, shape: Shape, folder: Path, disks: Path, engines: Engines, *, name: str = "fleet"
    ) -> None:
        super().__init__(load, folder, disks, engines)
        self._engines, self._shape, self.name = engines, shape, name
        job = folder / "job.toml"
        text = job.read_text().replace('run = "fleet"', f'run = "{name}"')
        for key, number in (("rank", shape.rank), ("bits", shape.bits), ("num_seeds", shape.seeds)):
            text = re.sub(rf"^{key} = \d+$", f"{key} = {number}", text, flags=re.MULTILINE)
        job.write_text(text)
        self.watched: dict[str, _Together] = {}

    def run(self, timeout_seconds: float) -> dict[str, Any]:
        """Start everything, wait for the end, and say what it came to."""
        began = time.monotonic()
        coordinator = self._start("coordinator", "-c", "from fedcore.command import main; main()", *self._job())
        # It looks at the broker first; a thousand nodes that come at the same instant come after that.
        events = self.folder / "events.log"
        while coordinator.poll() is None and not (events.exists() and b'"security"' in events.read_bytes()):
            time.sleep(_POLL_SECONDS)
        time.sleep(_LOOKS_SECONDS)
        parts = [self._start_nodes(first) for first in range(0, self.load.nodes, _NODES_PER_PROCESS)]
        summary_file, ended_at = self.folder / self.name / "summary.json", None
        codes: list[int | None] = []
        sampled_at = float("-inf")
        while time.monotonic() < began + timeout_seconds:
            codes = [process.poll() for process in self._processes]
            if None not in codes or any(codes):
                break
            if ended_at is None and summary_file.exists():
                ended_at = time.monotonic()
            if ended_at is None and time.monotonic() - sampled_at > _SAMPLE_SECONDS:
                sampled_at = time.monotonic()
                self.sample({"coordinator": coordinator.pid, **self._engines.processes()})
                self.sample({f"nodes {n}": one.pid for n, one in enumerate(self._processes[1:])})
            time.sleep(_POLL_SECONDS)
        if ended_at is None or any(process.returncode != 0 for process in self._processes):
            raise RuntimeError(f"the run did not end; exit codes of coordinator and nodes {codes}; {self._tails()}")
        counts = [msgspec.json.decode(part.read_bytes(), type=Counts) for part in parts]
        return self.row(json.loads(summary_file.read_text()), counts, began, ended_at)

    def sample(self, processes: dict[str, int]) -> None:
        """Look at processes, by name."""
        for name, pid in processes.items():
            self.watched.setdefault(name, _Together()).sample(pid)

    def row(self, summary: dict[str, Any], counts: list[Counts], began: float, ended_at: float) -> dict[str, Any]:
        """What the run came to."""
        load, shape = self.load, self._shape
        ledger = open_ledger(RunFolder(self.folder / self.name))
        plan = ledger.plan(1)
        assert plan is not None
        numbers = range(1, load.rounds + 1)
        updates = [[row.header.node for row in ledger.updates(number)] for number in numbers]
        size = max((row.size_bytes for row in ledger.updates(1)), default=0)
        events = Counter(kind for _, kind, _, _ in ledger.events())
        ledger.close()
        settings = FedKRSOSettings(
            projection="signs", published_bits=16, rank=shape.rank, bits=shape.bits, num_seeds=shape.seeds
        )
        digest = expected_digest(settings, self.schema, plan.base_digest, SEED, nodes=load.nodes, rounds=load.rounds)
        seconds = ended_at - self._opened_at[0]
        held = {name: one for name, one in self.watched.items() if not name.startswith("nodes")}
        nodes = [one for name, one in self.watched.items() if name.startswith("nodes")]
        total = Counter[str]()
        for part in counts:
            total += Counter({f"sent {kind}": number for kind, number in part.sent.items()})
            total += Counter({f"received {kind}": number for kind, number in part.received.items()})
        return {
            "nodes": load.nodes,
            "rounds": load.rounds,
            "update_kb": round(size / 1e3, 1),
            "seconds_until_all_were_there": round(self._opened_at[0] - began, 1),
            "seconds": round(seconds, 1),
            "rounds_per_minute": round(60 * load.rounds / seconds, 2),
            "seconds_until_closed": [round(row["seconds"], 1) for row in summary["rounds"]],
            "peak_mb": {name: round(one.peak_bytes / 1e6, 1) for name, one in held.items()},
            "processor_seconds": {name: round(one.processor_seconds, 1) for name, one in held.items()},
            "nodes_peak_mb": round(sum(one.peak_bytes for one in nodes) / 1e6, 1),
            "nodes_processor_seconds": round(sum(part.processor_seconds for part in counts), 1),
            "messages": dict(sorted(total.items())),
            "updates_expected": load.nodes * load.rounds,
            "updates_committed": sum(map(len, updates)),
            "exactly_once": all(sorted(set(nodes)) == sorted(nodes) for nodes in updates)
            and all(len(row["participants"]) == load.nodes for row in summary["rounds"]),
            "digest_of_one_process": summary["final"]["digest"] == digest,
            "nodes_with_the_digest": sum(node["digest"] == digest for node in summary["nodes"].values()),
            "events": dict(events),
            "begun_again": sum(part.begun_again for part in counts),
            "trouble": [line for part in counts for line in part.trouble][:5],
        }
