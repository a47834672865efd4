# SPDX-License-Identifier: Apache-2.0
"""How long somebody waits: processor seconds of what is typed at a terminal, and of what a node does before its first
step.

`python -m benchmarks.waiting.seconds [--before FOLDER] [ROW ...]` prints a table. With --before, another checkout of
this project is measured too, each row there and here in turn, so that what else the machine does meets both. Times are
the processor's (user and system, of the process and its children), and the clock's for the doctor, which mostly
waits. All modules are compiled before: a person pays for that once."""

from __future__ import annotations

import argparse
import compileall
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]

_CONFIGS: dict[str, dict[str, Any]] = {
    "smollm2": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "tie_word_embeddings": True, "dtype": "bfloat16", "architectures": ["LlamaForCausalLM"],
    },
    "tinyllama": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
        "tie_word_embeddings": False, "dtype": "bfloat16", "architectures": ["LlamaForCausalLM"],
    },
    "minilm": {
        "model_type": "bert", "vocab_size": 30522, "hidden_size": 384, "intermediate_size": 1536,
        "num_hidden_layers": 6, "num_attention_heads": 12, "max_position_embeddings": 512, "dtype": "float32",
        "architectures": ["BertModel"],
    },
}  # fmt: skip
_COMMAND = ("-c", "from fedcore.command import main; main()")
_TRACE = """
import sys
from pathlib import Path
from edge_client.worker.programs.lean import hide_optional_packages
hide_optional_packages()
from edge_client.process.measuring import subspace_round
from edge_client.worker.model.loading import describe
from edge_client.worker.trace.footprint import footprint
from edge_client.worker.trace.outline import Outline
from fedcore.config.sections import TaskSection
folder, labels = Path(sys.argv[1]), tuple(sys.argv[2:])
task = TaskSection(kind="text-classification" if labels else "causal-lm", labels=labels, max_length=128)
training = subspace_round(pool=5, rank=8, batch_size=16, steps=1, intervals=5)
footprint(folder, describe(Outline(folder, task), task), task, "int8", training, longest=128)
"""
_PACKAGES = ("coordinator", "devices", "edge_client", "fedcore", "fedkrso")
_WALL = ("doctor, first", "doctor, later")


def _rows(folder: Path) -> dict[str, tuple[str, ...]]:
    """What is typed or started, by the row's name."""
    return {
        "fedkrso --help": (*_COMMAND, "--help"),
        "fedkrso status --help": (*_COMMAND, "status", "--help"),
        "profile, SmolLM2's shape": (*_COMMAND, "profile", str(folder / "smollm2"), "--budget", "4GiB"),
        "profile, TinyLlama's shape": (*_COMMAND, "profile", str(folder / "tinyllama"), "--budget", "8GiB"),
        "libraries and trace, MiniLM": ("-c", _TRACE, str(folder / "minilm"), "a", "b"),
        "libraries and trace, SmolLM2": ("-c", _TRACE, str(folder / "smollm2")),
        "doctor, first": (*_COMMAND, "doctor", "--again"),
        "doctor, later": (*_COMMAND, "doctor"),
    }


def _seconds(command: Sequence[str], checkout: Path, cache: Path, *, wall: bool) -> float:
    """Of one run in a checkout."""
    environment = {
        **os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(cache),
    }  # fmt: skip
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, *command], cwd=cache, env=environment, capture_output=True, text=True, check=False
    )
    took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode and not wall:
        raise SystemExit(f"{' '.join(command)[:80]}: {done.stderr.strip().splitlines()[-1:]}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took if wall else used


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help="Beginnings of rows' names; all by default.")
    parser.add_argument("--before", type=Path, help="Another checkout to compare with.")
    options = parser.parse_args()
    here = Path(__file__).resolve().parents[2]
    sys.stdout.write("| row | before | now | ratio |\n|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, config in _CONFIGS.items():
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
        checkouts = [here] if options.before is None else [options.before.resolve(), here]
        for checkout in checkouts:
            for package in _PACKAGES:
                compileall.compile_dir(checkout / package, quiet=1)
        for name, command in _rows(folder).items():
            if options.rows and not any(name.startswith(row) for row in options.rows):
                continue
            times = []
            for checkout in checkouts:
                cache = folder / f"cache-{checkout.name}"
                cache.mkdir(exist_ok=True)
                times.append(_seconds(command, checkout, cache, wall=name in _WALL))
            was = f"{times[0]:.2f} s" if len(times) == 2 else "-"
            ratio = f"{times[-1] / times[0]:.2f}" if len(times) == 2 else "-"
            sys.stdout.write(f"| {name} | {was} | {times[-1]:.2f} s | {ratio} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
