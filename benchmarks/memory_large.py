# SPDX-License-Identifier: Apache-2.0
"""A 1.1 B Llama shape (TinyLlama's configuration, random weights) trains at length 256 under a limit that the kernel
enforces.

    python -m benchmarks.memory_large [--out large.jsonl]

Resident weights within 2.2 GB and mapped weights within 1.2 GB for the worker, by a memory cgroup (an rlimit where none
can be made); then PEFT LoRA on bitsandbytes int8 without a limit, for what the same needs and what each costs in time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.models import model
from edge_client.commands.bench_memory import spawn
from edge_client.memory.group import confine
from edge_client.process.measuring import Request, measured
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import WorkerError

NAME, LENGTH = "tinyllama-1.1b", 256
# Limit in MB, and what trains within it.
CASES = (
    (2200, MemoryPlan(micro_batch_size=1)),
    (2200, MemoryPlan(micro_batch_size=1, checkpointing=True)),
    (1200, MemoryPlan(micro_batch_size=1, checkpointing=True, mapped=True)),
    (1000, MemoryPlan(micro_batch_size=1, checkpointing=True, mapped=True, block_rows=64)),
)


def case(path: Path, task: Any, scratch: Path, limit_mb: int, memory: MemoryPlan, threads: int) -> dict[str, Any]:
    """Two steps under a limit."""
    request = Request(model_folder=str(path), task=task, batch_size=1, length=LENGTH, memory=memory, threads=threads)
    memory_group = confine(limit_mb * 10**6, f"fedkrso-large-{os.getpid()}")
    row: dict[str, Any] = {
        "method": "fedkrso",
        "limit_mb": limit_mb,
        "held_by": memory_group.kind,
        "mapped": memory.mapped,
    }
    row |= {"checkpointing": memory.checkpointing}
    try:
        got = measured(request, scratch, memory_group)
    except WorkerError as error:
        return row | {"failed": error.message, "kills": memory_group.kills()}
    finally:
        memory_group.close()
    return row | {
        "kills": 0,
        "peak_mb": round(got.peak_bytes / 1e6),
        "loading_peak_mb": round(got.peak_loading_bytes / 1e6),
        "predicted_mb": round(got.traced.total_bytes / 1e6),
        "step_seconds": round(got.step_seconds, 1),
    }


def main() -> None:
    """Run the cases, a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("memory-large.jsonl"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, options.out.open("w") as out:

        def show(row: dict[str, Any]) -> None:
            for stream in (sys.stdout, out):
                stream.write(json.dumps(row) + "\n")
                stream.flush()

        folder = options.folder or Path(temporary)
        found = model(NAME, folder)
        assert found is not None
        path, task = found
        scratch = folder / f"{NAME}-replica"
        # The int8 file is made once, without a limit on time; the cases start from it.
        case(
            path, task, scratch, 3000, MemoryPlan(micro_batch_size=1, checkpointing=True, mapped=True), options.threads
        )
        for limit_mb, memory in CASES:
            show(case(path, task, scratch, limit_mb, memory, options.threads))
        for checkpointing in (False, True):
            sizes = {"steps": 2, "threads": options.threads, "batch": 1, "length": LENGTH}
            row = spawn("lora", checkpointing, "default", sizes, model_config=path / "config.json")
            show(
                {
                    "method": "lora",
                    "checkpointing": checkpointing,
                    "static_mb": round(row["static_bytes"] / 1e6),
                    "peak_mb": round(row["peak_bytes"] / 1e6),
                    "step_seconds": round(row["step_seconds"], 1),
                }
            )


if __name__ == "__main__":
    main()
