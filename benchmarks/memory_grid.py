# SPDX-License-Identifier: Apache-2.0
"""Predicted against measured peak memory over a grid of models, batches, lengths, checkpointing and ranks.

    python -m benchmarks.memory_grid [--models minilm,llama-50m] [--dtype bfloat16] [--out grid.jsonl]

Each row is a process of its own that does what a worker does. Prediction: `config.json` and the process' own runtime,
before a weight is loaded. Measurement: the kernel's high-water mark of the resident size while training. Rows that are
in `--out` already are kept."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.models import model
from edge_client.process.measuring import Request, measured
from fedcore.device.memoryplan import MemoryPlan

# Batch and length: the corners and the middle; large models leave out what takes minutes a step.
LARGE = [(1, 32), (1, 512), (4, 128), (16, 32)]
SMALL = [*LARGE, (16, 512)]
GRID = {
    "stories260k": (SMALL, (4, 32)),
    "minilm": (SMALL, (4, 32)),
    "llama-50m": (LARGE, (4, 32)),
    "llama-150m": (LARGE, (4, 32)),
    "llama-400m": (LARGE, (4, 32)),
}


def rows(names: list[str], folder: Path, dtype: str, known: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Measure every combination that is not known yet."""
    for name in names:
        found = model(name, folder)
        if found is None:
            sys.stderr.write(f"{name} is not at hand\n")
            continue
        path, task = found
        shapes, ranks = GRID[name]
        for batch, length in shapes:
            for rank in ranks:
                for checkpointing in (False, True):
                    if (name, batch, length, rank, checkpointing, dtype) in known:
                        continue
                    request = Request(
                        model_folder=str(path),
                        task=task,
                        batch_size=batch,
                        length=length,
                        rank=rank,
                        compute_dtype=dtype,
                        memory=MemoryPlan(micro_batch_size=batch, checkpointing=checkpointing),
                    )
                    got = measured(request, folder / f"{name}-replica")
                    yield {
                        "model": name,
                        "batch": batch,
                        "length": length,
                        "rank": rank,
                        "checkpointing": checkpointing,
                        "dtype": dtype,
                        "predicted_mb": round(got.traced.total_bytes / 1e6, 1),
                        "calibrated_mb": round(got.predicted.total_bytes / 1e6, 1),
                        "measured_mb": round(got.peak_bytes / 1e6, 1),
                        "error": round(got.error, 4),
                        "calibrated_error": round(got.predicted.total_bytes / got.peak_bytes - 1, 4),
                        "step_seconds": round(got.step_seconds, 3),
                    }


def main() -> None:
    """Run the grid, a line of JSON a row, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(GRID))
    parser.add_argument("--dtype", default="float32", help="of the products")
    parser.add_argument("--out", type=Path, default=Path("memory-grid.jsonl"))
    parser.add_argument("--folder", type=Path, help="for random models; a temporary one by default")
    options = parser.parse_args()
    options.out.touch()
    before = [json.loads(line) for line in options.out.read_text().splitlines()]
    known = {
        (r["model"], r["batch"], r["length"], r["rank"], r["checkpointing"], r.get("dtype", "float32")) for r in before
    }
    with tempfile.TemporaryDirectory() as temporary, options.out.open("a") as out:
        for row in rows(options.models.split(","), options.folder or Path(temporary), options.dtype, known):
            before.append(row)
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            out.write(json.dumps(row) + "\n")
            out.flush()
    for key in ("error", "calibrated_error"):
        worst = max(before, key=lambda row: abs(row[key]))
        mean = statistics.mean(abs(row[key]) for row in before)
        sys.stdout.write(f"{key}: {len(before)} rows, mean {mean:.1%}, worst {worst[key]:+.1%} {worst}\n")


if __name__ == "__main__":
    main()
