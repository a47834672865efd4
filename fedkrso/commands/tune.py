# SPDX-License-Identifier: Apache-2.0
"""`fedkrso tune`: which learning rates, and which start of a head, a job should have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedcore.errors import ConfigError

__all__ = ["tune"]


@click.command(
    epilog="\b\nExamples:\n"
    "  fedkrso tune job.toml\n"
    "  fedkrso tune job.toml --nodes 4 --data reviews.csv --split dirichlet:0.5"
)
@click.argument("job_file", type=click.Path(path_type=Path), metavar="JOB.toml")
@click.option("--data", help="A CSV, TSV or JSONL file to deal; without it, the node files beside JOB.toml take part.")
@click.option("--nodes", type=click.IntRange(1, 1000), help="How many nodes the data is dealt to.  [default: 4]")
@click.option("--split", help="iid, dirichlet:ALPHA (smaller: more uneven), or by:COLUMN.  [default: iid]")
@click.option("--text", help="Column with the text; by default as in the job's [evaluation].")
@click.option("--text-pair", help="Column with the second sentence.")
@click.option("--label", help="Column with the label or score.")
@click.option("--rounds", type=click.IntRange(2), default=3, show_default=True, help="Of each trial.")
@click.option("--factors", help="On the job's learning rates, with commas.  [default: 0.1, 0.3, 1, 3]")
@click.option(
    "--head",
    type=click.Choice(["both", "random", "ridge"]),
    default="both",
    show_default=True,
    help="Starts of a new head that are tried, as far as the job can have them.",
)
@click.option("--rows", type=click.IntRange(1), default=1000, show_default=True, help="Of each node at most.")
@click.option("--held-rows", type=click.IntRange(1), default=1000, show_default=True, help="Measured on at most.")
@click.option("--threads", type=click.IntRange(1), help="To compute with.  [default: all]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the trials.  [default: JOB's folder, RUN-tune]")
def tune(job_file: Path, **flags: Any) -> None:
    """Try learning rates and starts of the head in short federated runs, in this process and on this machine's own
    copies of the data, and say what to write in the job. Ended at any moment, the same command goes on.

    Rates are chosen by the accuracy on held-out rows after the last round."""
    from fedkrso.tuning.fromfiles import Tuning

    factors = _numbers(flags.pop("factors"))
    tuning = Tuning(job_file, factors=factors, **flags)
    for line in tuning.about():
        click.echo(line)
    for line in tuning.run(click.echo):
        click.echo(line)


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < one <= 1000 for one in found) or len(set(found)) < len(found):
        raise ConfigError(f"{text!r} are no factors", place="--factors", remedy="write numbers above 0, with commas")
    return found
