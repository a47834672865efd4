# SPDX-License-Identifier: Apache-2.0
"""How much memory training takes, side by side: this project's layer, PEFT LoRA on bitsandbytes int8, full fine-tuning.

Each row runs in a process of its own, because what an allocator keeps is a large part of the answer and cannot be taken
back. The model has the shape of Llama-160M (12 layers, width 768, MLP 3,072, 32,000 words; 162 million random
parameters), batch 4 of 256 tokens, float32 on two CPU threads. Linux only: it reads /proc.

Run all rows with `fedkrso bench memory`, one with `python -m edge_client.commands.bench_memory fedkrso
--checkpointing`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from edge_client.memory.allocator import ALLOCATORS
from edge_client.process.packages import require_training_packages
from fedcore.errors import WorkerError

__all__ = ["METHODS", "MORE_METHODS", "Row", "main", "rows", "spawn"]

METHODS = ("fedkrso", "fedkrso-gates", "lora", "full")
# Measured where they are asked for: with float32 weights beside, or instead of, int8.
MORE_METHODS = ("fedkrso-dequantised", "lora-float")


class Row(TypedDict):
    """One measurement. Training memory is `peak_bytes` - `static_bytes`."""

    method: str
    checkpointing: bool
    allocator: str
    static_bytes: int
    """Anonymous resident memory with model and optimiser built, before the first step."""
    peak_bytes: int
    """The highest anonymous resident memory during the steps."""
    step_seconds: float
    """Median time of a step."""


def rows(
    methods: Sequence[str] = METHODS,
    allocators: Sequence[str] = tuple(ALLOCATORS),
    *,
    steps: int = 5,
    threads: int = 2,
    layers: int = 12,
) -> Iterator[Row]:
    """Measure every combination, one process after the other, yielding each row when it is done.

    Args:
        methods: Of METHODS.
        allocators: Keys of ALLOCATORS.
        steps: Timed steps, after one warm-up step.
        threads: Of torch.
        layers: Of the model; fewer for a quick look.

    Raises:
        WorkerError: A measuring process failed.
    """
    require_training_packages()
    for allocator in allocators:
        for checkpointing in (False, True):
            for method in methods:
                if method == "fedkrso-gates" and checkpointing:
                    # Checkpointing recomputes gates with all else.
                    continue
                sizes = {"steps": steps, "threads": threads, "layers": layers}
                yield spawn(method, checkpointing, allocator, sizes)


def spawn(
    method: str, checkpointing: bool, allocator: str, sizes: dict[str, int], model_config: Path | None = None
) -> Row:
    """Measure one row in a process of its own.

    Args:
        method: Of METHODS or MORE_METHODS.
        checkpointing: Whether blocks are recomputed.
        allocator: A key of ALLOCATORS.
        sizes: Values of the flags `steps`, `threads`, `layers`, `batch`, `length`.
        model_config: Another model's config.json.

    Raises:
        WorkerError: The process failed.
    """
    command = [sys.executable, "-m", "edge_client.commands.bench_memory", method, "--allocator", allocator]
    command += [f"--{name}={size}" for name, size in sizes.items()] + ["--checkpointing"] * checkpointing
    command += [f"--config={model_config}"] if model_config is not None else []
    done = subprocess.run(command, env=os.environ | ALLOCATORS[allocator], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing on its error output"])[-1]
        raise WorkerError(f"the measuring process ended with {done.returncode}: {last}", place=f"bench memory {method}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one row in this process and print it as one line of JSON.

    The allocator's environment must have been set when this process started; `--allocator` only names it in the row.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("method", choices=METHODS + MORE_METHODS)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--allocator", choices=tuple(ALLOCATORS), default="default")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--config", help="Another Llama model's config.json.")
    options = parser.parse_args(arguments)
    # Here, not above: the client's own process imports this module and stays without torch.
    from edge_client.worker.programs.bench import Shape, measure

    static_bytes, peak_bytes, step_seconds = measure(
        options.method,
        checkpointing=options.checkpointing,
        steps=options.steps,
        threads=options.threads,
        shape=Shape(options.layers, options.batch, options.length, options.config),
    )
    row = Row(
        method=options.method,
        checkpointing=options.checkpointing,
        allocator=options.allocator,
        static_bytes=static_bytes,
        peak_bytes=peak_bytes,
        step_seconds=step_seconds,
    )
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
