# SPDX-License-Identifier: Apache-2.0
"""`fedkrso simulate`: a run with all of its nodes on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from fedcore.errors import ConfigError, RunError

__all__ = ["simulate"]


@click.command(
    epilog="\b\nExamples:\n"
    "  fedkrso simulate job.toml\n"
    "  fedkrso simulate job.toml --nodes 4 --data reviews.csv --split dirichlet:0.5\n"
    "  fedkrso simulate job.toml --nodes 10 --data talk.csv --split by:speaker --rounds 3"
)
@click.argument("job_file", type=click.Path(path_type=Path), metavar="JOB.toml")
@click.option("--data", help="A CSV, TSV or JSONL file to deal; without it, the node files beside JOB.toml take part.")
@click.option("--nodes", type=click.IntRange(1, 1000), help="How many nodes the data is dealt to.  [default: 4]")
@click.option("--split", help="iid, dirichlet:ALPHA (smaller: more uneven), or by:COLUMN.  [default: iid]")
@click.option(
    "--held-out",
    type=click.FloatRange(0, 0.9, min_open=True),
    help="Share of the data that evaluates, where the job has no [evaluation].  [default: 0.2]",
)
@click.option("--text", help="Column with the text; by default as in the job's [evaluation].")
@click.option("--text-pair", help="Column with the second sentence.")
@click.option("--label", help="Column with the label or score.")
@click.option("--rounds", type=click.IntRange(1), help="Instead of the job's.")
@click.option("--seed", type=click.IntRange(0), help="Of the run and of the dealing, instead of the job's.")
@click.option("--budget", default="", help="Memory of each node, as in a node file: '1 GiB', '20%'.")
@click.option("--run", default="", help="Name of the run, instead of the job's.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option(
    "--broker", "kind", type=click.Choice(["mosquitto", "nats"]), help="By default mosquitto where there is one."
)
def simulate(
    job_file: Path,
    data: str | None,
    nodes: int | None,
    split: str | None,
    held_out: float | None,
    text: str | None,
    text_pair: str | None,
    label: str | None,
    rounds: int | None,
    seed: int | None,
    budget: str,
    run: str,
    runs: Path,
    kind: str | None,
) -> None:
    """Run a job with all of its nodes on this machine: broker, coordinator and nodes are processes of their own and
    speak over the real wire, encrypted and signed.

    Everything is kept in RUNS/NAME-nodes: job and node files, each node's data, replica and log."""
    from coordinator.provisioning.broker import LocalBroker
    from fedcore.data.splits import Split, parse_split
    from fedkrso.fleet import run_fleet
    from fedkrso.simulation import Simulation, Wishes

    columns = {key: name for key, name in (("text", text), ("text_pair", text_pair), ("label", label)) if name}
    if data is None and (nodes or split or held_out or columns):
        raise ConfigError(
            "there is nothing to deal without --data", place="--nodes, --split, --held-out", remedy="add --data FILE"
        )
    wishes = Wishes(
        data=data,
        nodes=nodes or 4,
        split=parse_split(split) if split else Split("iid"),
        held_out=held_out or 0.2,
        columns=columns,
        run=run,
        rounds=rounds,
        seed=seed,
        budget=budget,
    )
    simulation = Simulation(job_file, wishes)
    folder = (runs / f"{simulation.run}-nodes").resolve()
    for taken in (runs / simulation.run, folder):
        if taken.exists():
            raise RunError(
                f"run {simulation.run!r} is already there", place=str(taken), remedy="name another with --run"
            )
    users = ["coordinator", *simulation.names]
    with LocalBroker(folder / "broker", users, kind=kind, tls=True, run=simulation.run) as broker:  # type: ignore[arg-type]
        click.echo(f"broker {broker.kind} at {broker.url}, {len(simulation.names)} nodes, all files in {folder}")
        for line in simulation.about():
            click.echo(line)
        job, files = simulation.write(folder, broker)
        code = run_fleet(job, files, runs=runs, logs=folder)
    if code:
        raise click.exceptions.Exit(code)
