# SPDX-License-Identifier: Apache-2.0
"""`fedkrso try`: somebody's own sentences, and what a run's model says of them."""

from __future__ import annotations

from pathlib import Path

import click

from fedcore.errors import ConfigError

__all__ = ["try_out"]


@click.command(name="try", epilog='\b\nExample:\n  fedkrso try first "The tap drips." "My room is cold."')
@click.argument("run")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
def try_out(run: str, texts: tuple[str, ...], runs: Path) -> None:
    """Say what RUN's last model makes of each TEXT: its likeliest label with the probability, or its score; or the
    answer of a model that writes. A task with pairs takes first and second sentences by turns."""
    from coordinator.reports.answers import ask_model
    from coordinator.store.folder import RunFolder, stored_job
    from fedcore.config.tasks import task_of

    files = RunFolder(runs / run)
    job = stored_job(files.root)
    pairs: list[tuple[str, str | None]] = [(text, None) for text in texts]
    if task_of(job.task).pair or (job.evaluation is not None and job.evaluation.text_pair is not None):
        if len(texts) % 2:
            raise ConfigError("a second sentence is missing", place="TEXT", remedy="give first and second by turns")
        pairs = list(zip(texts[::2], texts[1::2], strict=True))
    for (text, second), said in zip(pairs, ask_model(files, pairs), strict=True):
        click.echo(f"{text}{'' if second is None else f' | {second}'}  ->  {said}")
