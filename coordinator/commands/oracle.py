# SPDX-License-Identifier: Apache-2.0
"""`fedkrso coordinator oracle`: the large model behind devices that answer by themselves what they are sure of."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["coordinator_oracle"]


@click.command(
    epilog="\b\nExample:\n"
    "  fedkrso coordinator offsite tuned small --first 2 --last 0 --middle 0\n"
    "  fedkrso coordinator oracle job.toml --model tuned --blocks 2"
)
@click.argument("job_file", type=click.Path(path_type=Path), metavar="JOB.toml")
@click.option("--model", required=True, metavar="FOLDER", help="The large model: a classifier that a run exported.")
@click.option("--blocks", type=click.IntRange(min=1), required=True, help="How many of its first blocks devices have.")
@click.option(
    "--clusters", type=click.IntRange(min=1), default=1, show_default=True, help="Of devices ([ask] cluster)."
)
@click.option("--quorum", type=click.IntRange(min=1), default=2, show_default=True, help="Devices to make a threshold.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Of the model; 0: as many as there are cores.")
@click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs."
)
def coordinator_oracle(
    job_file: Path, model: str, blocks: int, clusters: int, quorum: int, threads: int, runs: Path
) -> None:
    """Answer what devices are unsure of, over the broker of JOB.toml, until interrupted.

    Devices (`fedkrso client ask`) have the model's first blocks and send what these made of a text, not the text."""
    from coordinator.job import Job
    from coordinator.oracle.desk import Limits
    from coordinator.oracle.service import Oracle
    from fedcore.config.models import resolve_model_folder
    from fedcore.config.reading import load_config

    job, folder = load_config(job_file, Job), resolve_model_folder(model, place="--model")
    with Oracle(job, runs / job.run / "oracle", Limits(quorum=quorum), lambda line: click.echo(line)) as oracle:
        loaded = oracle.load(folder, blocks, clusters, threads)
        click.echo(f"answering for run {job.run}: {', '.join(loaded.labels)}; {blocks} blocks are on devices")
        try:
            oracle.run()
        except KeyboardInterrupt:
            desk = oracle.desk
            click.echo(f"answered {desk.answered}, dropped {sum(desk.dropped.values())}", err=True)
            raise
