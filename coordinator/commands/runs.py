# SPDX-License-Identifier: Apache-2.0
"""`fedkrso runs`: what lies in the folder of runs, as tables for a person and as rows for other programs."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordinator.job import LedgerSection
from coordinator.reports.compare import Comparison, compare, signed, write_comparison
from coordinator.reports.objects import (
    ROUND_COLUMNS,
    job_words,
    node_objects,
    reason_objects,
    round_objects,
    run_object,
)
from coordinator.reports.runs import RunRecord, find_run, read_run, scan
from coordinator.reports.tables import Column, fitted, plain_table
from coordinator.store.folder import RunFolder, written
from coordinator.store.places import Database
from coordinator.terminal.console import day, make_console, megabytes
from coordinator.terminal.page import phase_words, rounds_table
from fedcore.errors import ConfigError, FedkrsoError, StorageError
from fedcore.system.durable import is_full
from fedcore.system.logs import printable

__all__ = ["runs_compare", "runs_export", "runs_list", "runs_move", "runs_show"]

_RUNS = click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="For machines.")
_SHOWN_REASONS = 20


@click.command(epilog="\b\nExample:\n  fedkrso runs list --json | jq '.runs[] | select(.state == \"stopped\").run'")
@_RUNS
@_JSON
def runs_list(runs: Path, as_json: bool) -> None:
    """All runs, the last started first: state, rounds, accuracy, bytes. What is no run, or damaged, is named and
    skipped."""
    records, skipped = scan(runs)
    if as_json:
        found = {
            "runs": [run_object(record) for record in records],
            "skipped": [{"folder": name, "why": why} for name, why in skipped],
        }
        click.echo(json.dumps(found, indent=1))
        return
    console = make_console()
    console.print(_runs_table(records, console.width) if records else Text(f"no runs in {printable(str(runs))}"))
    for name, why in skipped:
        console.print(Text(f"skipped {name}: {why}", style="dim"), soft_wrap=True)


@click.command(epilog="\b\nExample:\n  fedkrso runs show voice")
@click.argument("run")
@_RUNS
@_JSON
def runs_show(run: str, runs: Path, as_json: bool) -> None:
    """One run: its job in short, rounds, nodes, and who was refused or clipped and why; also of one that was killed.

    RUN is a name in the folder of runs, or a path.
    """
    record = read_run(find_run(runs, run))
    reasons = reason_objects(record)
    nodes = node_objects(record)
    if as_json:
        job = job_words(record)
        found = {
            **run_object(record),
            "why": record.why,
            "job": job,
            "rounds": round_objects(record),
            "nodes": nodes,
            "reasons": reasons,
        }
        found["published_rounds"] = len(record.rows)
        click.echo(json.dumps(found, indent=1))
        return
    console = make_console()
    _show_head(console, record)
    if record.rows:
        console.print(rounds_table(record.rows, record.view.title))
    if nodes:
        console.print()
        console.print(_nodes_table(nodes))
    if reasons:
        console.print()
        console.print(Text("reasons, the last ones; how often is in brackets", style="dim"))
    for reason in reasons[-_SHOWN_REASONS:]:
        times = f" ({reason['times']})" if reason["times"] > 1 else ""
        words = f"{reason['kind']} {reason['node']}: {reason['text']}{times}".replace(" :", ":")
        console.print(Text(f"  {day(reason['at'])}  {printable(words)}"), soft_wrap=True)


@click.command(
    epilog="\b\nExamples:\n  fedkrso runs export voice --out voice.csv\n"
    "  fedkrso runs export voice --format jsonl | jq .accuracy\n\n"
    "Column names stay as they are; docs/operating.md lists them."
)
@click.argument("run")
@_RUNS
@click.option(
    "--format", "form", type=click.Choice(["csv", "json", "jsonl"]), help="By default as FILE's name ends, else csv."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Instead of the standard output."
)
def runs_export(run: str, runs: Path, form: Literal["csv", "json", "jsonl"] | None, out: Path | None) -> None:
    """One row a round, for pandas, R or a spreadsheet.

    RUN is a name in the folder of runs, or a path.
    """
    rows = round_objects(read_run(find_run(runs, run)))
    ending = out.suffix.removeprefix(".").lower() if out is not None else ""
    text = _exported(rows, form or (ending if ending in ("json", "jsonl") else "csv"))
    if out is None:
        click.echo(text, nl=False)
        return
    _write(out, lambda path: path.write_text(text, encoding="utf-8"))
    click.echo(f"{printable(str(out))}: {len(rows)} rounds")


@click.command(epilog="\b\nExample:\n  fedkrso runs compare pool fresh --out pool-fresh.html")
@click.argument("names", nargs=-1, required=True, metavar="RUN RUN...")
@_RUNS
@_JSON
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.html", help="Also a page with plots."
)
def runs_compare(names: tuple[str, ...], runs: Path, as_json: bool, out: Path | None) -> None:
    """Runs side by side: accuracy at equal rounds, megabytes and seconds, differences to the first one, and what their
    jobs do differently.

    RUN is a name in the folder of runs, or a path.
    """
    if len(names) < 2:
        raise ConfigError("one run cannot be compared", place="RUN", remedy="name two or more")
    found = compare([read_run(find_run(runs, name)) for name in names])
    if out is not None:
        _write(out, lambda path: write_comparison(path, found))
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found), indent=1))
        return
    _show_comparison(make_console(), found)
    if out is not None:
        click.echo(f"page: {printable(str(out))}")


@click.command(
    epilog="\b\nExamples:\n  fedkrso runs move voice postgresql://fedkrso@db.example/runs\n"
    "  fedkrso runs move voice sqlite"
)
@click.argument("run")
@click.argument("to", metavar="sqlite|URL")
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="With the password of the user in URL alone; without it libpq looks where it always does.",
)
@_RUNS
def runs_move(run: str, to: str, password_file: Path | None, runs: Path) -> None:
    """Move a run's ledger from SQLite in its folder to a database of PostgreSQL, or back; all else stays in the folder.

    RUN is a name in the folder of runs, or a path. Nobody may lead the run meanwhile; `coordinator resume` then goes on
    with it where the ledger is.
    """
    from coordinator.store.moving import move_ledger

    folder = RunFolder(find_run(runs, run))
    to_database = None
    if to != "sqlite":
        section = LedgerSection(url=to, password_file=None if password_file is None else str(password_file.absolute()))
        to_database = Database(url=section.url, password_file=section.password_file)
    elif password_file is not None:
        raise ConfigError("a file has no password", place="--password-file", remedy="leave it out")
    with written(folder):
        moved = move_ledger(folder, to_database, lambda words, away: click.echo(words, err=True))
    where = folder.ledger if to_database is None else to_database.place
    click.echo(
        f"{folder.root.name}: {moved.rows} rows at {printable(str(where))}, the same as before ({moved.checksum[:12]})"
    )
    if moved.digest:
        click.echo(f"digest of the run's last round: {moved.digest}")


def _runs_table(records: list[RunRecord], width: int) -> Table:
    found = [run_object(record) for record in records]
    columns = [
        Column("run", [run["run"] for run in found], 9),
        Column("state", [run["state"] for run in found], 9),
        Column("rounds", [f"{run['rounds']}/{run['total_rounds']}" for run in found], 8, right=True),
        Column("last", [_share(run["last_accuracy"]) for run in found], 7, right=True),
        Column("best", [_share(run["best_accuracy"]) for run in found], 5, right=True),
        Column("nodes", [str(run["nodes"]) for run in found], 3, right=True),
        Column("started", [day(run["started_at"]) for run in found], 6),
        Column("sent", [megabytes(run["uplink_bytes"] + run["downlink_bytes"]) for run in found], 4, right=True),
        Column("folder", [megabytes(run["folder_bytes"]) for run in found], 2, right=True),
        Column("digest", [run["digest"][:12] for run in found], 1),
    ]
    return fitted(
        columns, width, styles=[{"running": "green", "stopped": "red"}.get(run["state"], "") for run in found]
    )


def _show_head(console: Console, record: RunRecord) -> None:
    why = f": {record.why}" if record.why else f", {phase_words(record, time.time())}"
    console.print(Text(printable(f"{record.name}  {record.state}{why}"), style="bold"), soft_wrap=True)
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    lines = {
        **job_words(record),
        "security": record.view.security,
        "privacy": record.rows[-1].privacy.words() if record.rows and record.rows[-1].privacy is not None else "",
        "digest": record.view.digest,
        "started": day(record.started_at),
    }
    for name, words in lines.items():
        if words:
            facts.add_row(name, Text(printable(words)))
    console.print(facts)
    console.print()


def _nodes_table(nodes: list[dict[str, Any]]) -> Table:
    table = plain_table()
    table.add_column("node", overflow="fold", min_width=6)
    for column in ("rounds", "version", "digest", "peak/budget MiB", "refused", "clipped", "capped"):
        table.add_column(column, justify="right", no_wrap=True)
    for node in nodes:
        digest = "same" if node["same_digest"] else "-" if not node["digest"] else node["digest"][:8]
        memory = f"{node['peak_bytes'] / 2**20:.0f}/{node['budget_bytes'] / 2**20:.0f}" if node["budget_bytes"] else "-"
        counts = [str(node[key] or "-") for key in ("refused", "rounds_clipped", "rounds_capped")]
        version = "-" if node["version"] is None else str(node["version"])
        table.add_row(printable(node["node"]), str(node["rounds"]), version, printable(digest), memory, *counts)
    return table


def _show_comparison(console: Console, found: Comparison) -> None:
    for curve in found.curves:
        console.print(Text(f"{curve.letter}  {curve.name}", style="bold"), soft_wrap=True)
    tables: tuple[tuple[str, str, Sequence[tuple[float, list[float | None]]]], ...] = (
        ("accuracy by round", "{:.0f}", found.by_round),
        ("within megabytes up", "{:.1f}", found.by_megabytes),
        ("within seconds", "{:.1f}", found.by_seconds),
    )
    for title, form, rows in tables:
        table = plain_table()
        table.add_column(title, justify="right", no_wrap=True)
        for curve in found.curves:
            table.add_column(curve.letter, justify="right", no_wrap=True)
        for at, values in rows:
            table.add_row(form.format(at), *map(_share, values))
        console.print()
        console.print(table if rows else Text(f"{title}: nothing was measured"))
    console.print()
    for row in found.paired:
        against = f"{row['run']} against {found.curves[0].letter}"
        if not row["rounds"]:
            console.print(Text(f"{against}: no round that both have measured"))
            continue
        differences = ", ".join(f"{key} {signed(row[key])}" for key in ("mean", "least", "largest", "last"))
        console.print(Text(f"{against}, {row['rounds']} equal rounds: {differences}"), soft_wrap=True)
    console.print()
    table = plain_table()
    for title in ("the jobs differ in", *(curve.letter for curve in found.curves)):
        table.add_column(title, overflow="fold")
    for key, words in found.jobs:
        table.add_row(printable(key), *words)
    console.print(table if found.jobs else Text("the jobs are the same"))


def _exported(rows: list[dict[str, Any]], form: str) -> str:
    if form == "json":
        return json.dumps(rows, indent=1) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ROUND_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "nodes": ";".join(row["nodes"])} for row in rows)
    return text.getvalue()


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Beside and renamed, so that what was there stays if this fails."""
    beside = path.with_name(f".{path.name}.new")
    try:
        write(beside)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        kind: type[FedkrsoError] = StorageError if is_full(error) else ConfigError
        raise kind(
            f"cannot be written: {error.strerror}", place=str(path), remedy="--out FILE in a folder that is there"
        ) from None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
