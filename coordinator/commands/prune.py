# SPDX-License-Identifier: Apache-2.0
"""`fedkrso runs prune`: room on the disk, from runs that have finished."""

from __future__ import annotations

import json
from pathlib import Path

import click

from coordinator.reports.runs import RunRecord, find_run, folder_bytes, read_run, scan
from coordinator.store.pruning import leftovers, prune
from coordinator.terminal.console import megabytes
from fedcore.errors import ConfigError
from fedcore.system.logs import printable

__all__ = ["runs_prune"]


@click.command(
    epilog="\b\nExamples:\n  fedkrso runs prune                # asks before it deletes\n"
    "  fedkrso runs prune voice --yes\n  fedkrso runs prune --dry-run --json"
)
@click.argument("names", nargs=-1, metavar="[RUN]...")
@click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--json", "as_json", is_flag=True, help="For machines; with --yes or --dry-run.")
def runs_prune(names: tuple[str, ...], runs: Path, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Delete what finished runs keep and nobody needs any more: updates that are in the model, exact states before the
    last, bases that can be made anew.

    Looking at a run, exporting it, trying it and giving it more rounds work as before. Without RUN: all finished runs
    in the folder. A run that goes on, or was stopped and can be resumed, is left alone.
    """
    if as_json and not (yes or dry_run):
        raise ConfigError("a question cannot be answered by a machine", place="--json", remedy="--yes or --dry-run")
    found = {record.root: _leftovers(record) for record in _chosen(names, runs)}
    found = {root: paths for root, paths in found.items() if paths}
    sizes = {root: sum(map(_bytes, paths)) for root, paths in found.items()}
    if not as_json:
        for root, paths in found.items():
            what = ", ".join(printable(str(path.relative_to(root))) for path in paths)
            click.echo(f"{printable(root.name)}: {megabytes(sizes[root])} ({what})")
    doing = bool(found) and not dry_run and (yes or click.confirm(f"delete {megabytes(sum(sizes.values()))}?"))
    if doing:
        for paths in found.values():
            prune(paths)
    if as_json:
        rows = [{"run": root.name, "bytes": sizes[root], "paths": [str(p) for p in found[root]]} for root in found]
        click.echo(json.dumps({"deleted": doing, "runs": rows}, indent=1))
    elif not found:
        click.echo("nothing to delete")
    elif doing:
        click.echo(f"deleted: {megabytes(sum(sizes.values()))}")


def _chosen(names: tuple[str, ...], runs: Path) -> list[RunRecord]:
    """Finished runs; one that somebody names and that has not finished is refused before anything is deleted.

    Raises:
        ConfigError: It has not finished.
    """
    if not names:
        return [record for record in scan(runs)[0] if record.state == "finished" and record.rows]
    records = [read_run(find_run(runs, name)) for name in names]
    for record in records:
        if record.state != "finished" or not record.rows:
            raise ConfigError(
                f"is {record.state}, not finished: its files are needed to go on",
                place=record.name,
                remedy="leave it out, or let it finish",
            )
    return records


def _bytes(path: Path) -> int:
    return folder_bytes(path) if path.is_dir() else path.lstat().st_size


def _leftovers(record: RunRecord) -> list[Path]:
    return leftovers(record.files, record.rows[-1].round, updates_count_later=record.job.round.buffered)
