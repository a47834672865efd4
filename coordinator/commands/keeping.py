# SPDX-License-Identifier: Apache-2.0
"""`fedkrso runs backup`, `restore` and `track`: see docs/operating.md."""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec

__all__ = ["runs_backup", "runs_restore", "runs_track"]

_RUNS = click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs."
)


@click.command(epilog="\b\nExample:\n  fedkrso runs backup voice /backup/voice-$(date +%F).tar")
@click.argument("run")
@click.argument("file", type=click.Path(path_type=Path))
@_RUNS
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def runs_backup(run: str, file: Path, runs: Path, as_json: bool) -> None:
    """Write RUN into one FILE that a run can be made of again, also while its coordinator goes on.

    In it are the ledger at one moment, what is published, the last exact state and the job (with its password, if it
    has one: the file is its owner's alone). Not in it: the model's folder, and keys that the job names.
    """
    from coordinator.backups.making import back_up
    from coordinator.reports.runs import find_run
    from coordinator.store.folder import RunFolder

    index = back_up(RunFolder(find_run(runs, run)), file)
    size = file.stat().st_size
    if as_json:
        click.echo(json.dumps({"file": str(file), "bytes": size, **msgspec.to_builtins(index)}, indent=1))
    else:
        click.echo(f"{file}: run {index.run} after round {index.rounds}, {size / 1e6:.1f} MB")


@click.command(epilog="\b\nExample:\n  fedkrso runs restore voice-2026-05-04.tar && fedkrso coordinator resume voice")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_RUNS
def runs_restore(file: Path, runs: Path) -> None:
    """Make a run of a backup FILE again, in a folder of runs that has none of its name.

    It goes on after the backup's last closed round, under a new id: nodes begin it anew, and train once more what came
    after.
    """
    from coordinator.backups.restoring import restore

    folder, index = restore(file, runs)
    after = f"{folder.root}: run {index.run} after round {index.rounds}"
    click.echo(f"{after}, finished" if index.finished else f"{after}; next: fedkrso coordinator resume {index.run}")


@click.command(
    epilog="\b\nExamples:\n  fedkrso runs track voice --to tensorboard:boards --follow\n"
    "  fedkrso runs track voice --to mlflow:http://127.0.0.1:5000"
)
@click.argument("run")
@click.option("--to", "targets", multiple=True, required=True, metavar="SINK:TARGET", help="Repeat for more.")
@click.option("--follow", is_flag=True, help="Go on until the run has ended.")
@_RUNS
def runs_track(run: str, targets: tuple[str, ...], follow: bool, runs: Path) -> None:
    """Bring RUN's numbers, round by round, to TensorBoard (tensorboard:FOLDER) or MLflow (mlflow:URI).

    Called again it adds what is new, and tells nothing twice. It reads, in a process of its own: whatever becomes of
    it, the run goes on.
    """
    from coordinator.reports.runs import find_run
    from coordinator.tracking.following import track

    def told(rounds: int) -> None:
        click.echo(f"{run}: {rounds} rounds")

    track(find_run(runs, run), targets, follow=follow, told=told)
