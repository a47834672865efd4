# SPDX-License-Identifier: Apache-2.0
"""`fedkrso status` and `fedkrso nodes`: a run in the terminal, from the folder that its coordinator writes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from coordinator.reports.nodes import SORTS, NodeRow, node_rows
from coordinator.reports.runs import RunRecord, choose_run
from coordinator.terminal.console import Page, make_console, watch
from coordinator.terminal.page import nodes_page, status_page

__all__ = ["nodes", "status"]

_RUNS = click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
_WATCH = click.option("--watch", "watching", is_flag=True, help="Keep it current until the run has ended; q leaves.")
_NODES_EPILOG = """\b
Examples:
  fedkrso nodes
  fedkrso nodes voice --sort memory
  fedkrso nodes voice --only attention --watch
"""
_STATUS_EPILOG = """\b
Examples:
  fedkrso status
  fedkrso status voice --watch
  fedkrso status voice --json | jq .state

state is running, finished or stopped; a stopped run says why, and how it goes on.
"""


@click.command(epilog=_STATUS_EPILOG)
@click.argument("run", required=False)
@_RUNS
@_JSON
@_WATCH
def status(run: str | None, runs: Path, as_json: bool, watching: bool) -> None:
    """A run and its round: phase, deadline, updates, accuracy so far, last events.

    RUN is a name in the folder of runs, or a path. Left out: the only run, or the one that was started last of those
    that run."""
    console = make_console()

    def page(record: RunRecord) -> Page:
        now = time.time()
        body = status_page(record, now, width=console.width, ascii_only=console.options.ascii_only)
        view = record.view
        key = (record.state, record.why, view.phase, view.round, view.paused, view.excluded, view.cohort, view.accepted)
        return Page(
            body, json.dumps(_status_object(record, now)), (*key, view.rows, view.events), record.state != "running"
        )

    _show(run, runs, page, as_json=as_json, watching=watching)


@click.command(epilog=_NODES_EPILOG)
@click.argument("run", required=False)
@_RUNS
@_JSON
@_WATCH
@click.option(
    "--sort", type=click.Choice(list(SORTS)), default="name", show_default=True, help="By a number: the largest first."
)
@click.option("--only", type=click.Choice(["attention"]), help="Nodes that somebody should look at.")
def nodes(run: str | None, runs: Path, as_json: bool, watching: bool, sort: str, only: str | None) -> None:
    """The nodes of a run: what each does, the model it holds, memory against its budget, temperature, power, last word.

    Attention is needed by a node that is offline, holds another model than was published, uses more than 90 % of its
    budget, is throttled, or declined with a reason."""
    console = make_console()

    def page(record: RunRecord) -> Page:
        now, rows = time.time(), node_rows(record.view, sort=sort, attention_only=only == "attention")
        body = nodes_page(record, rows, now, width=console.width, ascii_only=console.options.ascii_only)
        key = tuple(
            (row.view.node, row.activity.split(" ")[0], row.view.version, row.digest, row.view.reason) for row in rows
        )
        return Page(
            body, json.dumps(_nodes_object(record, rows, now)), (record.state, sorted(key)), record.state != "running"
        )

    _show(run, runs, page, as_json=as_json, watching=watching)


def _show(run: str | None, runs: Path, page: Callable[[RunRecord], Page], *, as_json: bool, watching: bool) -> None:
    # Chosen once: another run that starts meanwhile is not the one that is watched.
    first = choose_run(runs, run)
    console = make_console()
    if watching:
        watch(console, lambda: page(choose_run(runs, str(first.root.resolve()))), as_json=as_json)
    elif as_json:
        click.echo(page(first).plain)
    else:
        console.print(page(first).body)


def _status_object(record: RunRecord, now: float) -> dict[str, Any]:
    """Field names that stay."""
    view = record.view
    values = {row.round: row.accuracy for row in record.measured}
    return {
        "run": record.name,
        "state": record.state,
        "why": record.why,
        "age_seconds": record.age_seconds(now),
        "started_at": record.started_at,
        "phase": view.phase,
        "round": view.round,
        "published_rounds": len(record.rows),
        "total_rounds": view.total_rounds,
        "deadline_at": view.deadline_at,
        "paused": view.paused,
        "excluded": view.excluded,
        "invited": view.cohort,
        "accepted": view.accepted,
        "accuracy_by_round": values,
        "metrics_by_round": {row.round: row.metrics for row in record.measured},
        "notes": view.notes,
        "uplink_bytes": sum(row.uplink_bytes for row in record.rows),
        "downlink_bytes": sum(row.downlink_bytes for row in record.rows),
        "digest": view.digest,
        "security": view.security,
        "privacy": msgspec.to_builtins(record.rows[-1].privacy) if record.rows else None,
        "nodes": len(view.nodes),
        "nodes_online": sum(node.online for node in view.nodes.values()),
        "events": [msgspec.to_builtins(event) for event in view.events],
    }


def _nodes_object(record: RunRecord, rows: list[NodeRow], now: float) -> dict[str, Any]:
    found = [
        {
            **msgspec.to_builtins(row.view),
            "activity": row.activity,
            "model": row.digest,
            "used_bytes": row.used_bytes,
            "attention": row.notes,
        }
        for row in rows
    ]
    return {"run": record.name, "state": record.state, "age_seconds": record.age_seconds(now), "nodes": found}
