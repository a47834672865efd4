# SPDX-License-Identifier: Apache-2.0
"""`fedkrso server`: many runs on one fleet."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from fedcore.system.logs import LOG_FORMATS, Line, LogFormat, LogWriter, printable

__all__ = ["server_list", "server_log", "server_nodes", "server_run", "server_stop", "server_submit"]

_JSON = click.option("--json", "as_json", is_flag=True, help="For machines.")
_FOLLOW_SECONDS = 0.5


def _where(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which server is meant."""
    for flag in (
        click.option("--token-file", type=click.Path(path_type=Path), help="ROLE NAME TOKEN, as its owner gave it."),
        click.option("--server", "url", default="", metavar="URL", help="A server elsewhere."),
        click.option(
            "--runs",
            type=click.Path(path_type=Path),
            default=Path("runs"),
            show_default=True,
            help="The server's folder of runs, where it is on this machine.",
        ),
    ):
        command = flag(command)
    return command


@click.command(epilog="\b\nExample:\n  fedkrso server run server.toml")
@click.argument("server_file", type=click.Path(path_type=Path), metavar="SERVER.toml")
@click.option("--check", is_flag=True, help="Check the file, and leave.")
@click.option("--log-format", "form", type=click.Choice(LOG_FORMATS), default="text", show_default=True)
def server_run(server_file: Path, check: bool, form: LogFormat) -> None:
    """Serve a fleet: take jobs, lead several runs at once, each in a process of its own, and go on after any restart.

    When it ends, or is killed, its runs go on; the next `server run` finds them."""
    from coordinator.server.hosting import hosted, load_settings

    settings = load_settings(server_file)
    if check:
        click.echo(f"{server_file} is right")
        return
    log, one_at_a_time = LogWriter(sys.stdout, form, run=""), threading.Lock()

    def say(line: Line) -> None:
        with one_at_a_time:
            log.say(line)

    with hosted(settings, say) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        server.run()
    say(Line("the server has ended; its runs go on", event="ended"))


@click.command(epilog="\b\nExample:\n  fedkrso server submit job.toml")
@click.argument("job_file", type=click.Path(path_type=Path), metavar="JOB.toml")
@_where
def server_submit(job_file: Path, runs: Path, url: str, token_file: Path | None) -> None:
    """Queue a job. It is a job file as for `fedkrso coordinator run`; [broker] and [trust] may be left out, since those
    of the server count. Paths in it are of the server's machine."""
    import msgspec

    from coordinator.job import Job
    from coordinator.server.asking import Asked
    from fedcore.config.reading import load_config

    left_out = {"broker": {"url": "mqtt://localhost", "insecure": True}}
    job = msgspec.structs.replace(load_config(job_file, Job, left_out), fleet="")
    raw = msgspec.to_builtins(job)
    # A password of this machine's own is nobody else's business.
    raw |= {"broker": left_out["broker"], "trust": {}}
    said = Asked(runs, url, token_file).post("/api/runs", {"job": raw})
    click.echo(f"{said['run']} is {said['state']}; what becomes of it: fedkrso server list")


@click.command(name="list")
@_where
@_JSON
def server_list(runs: Path, url: str, token_file: Path | None, as_json: bool) -> None:
    """The server's runs, the last submitted first: state, rounds, accuracy, nodes, and what each waits for."""
    from coordinator.server.asking import Asked

    rows = Asked(runs, url, token_file).get("/api/runs")["runs"]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    from coordinator.terminal.console import make_console

    make_console().print(_table(rows) if rows else "no run was submitted")


@click.command()
@_where
@_JSON
def server_nodes(runs: Path, url: str, token_file: Path | None, as_json: bool) -> None:
    """The fleet's nodes: the run that each is in, runs that it would take part in, and why not in others."""
    from coordinator.server.asking import Asked

    rows = Asked(runs, url, token_file).get("/api/nodes")["nodes"]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        why = "; ".join(f"{run}: {reason}" for run, reason in row["declined"].items())
        wanted = row["release"]
        version = row["software"] + (f", is to run {wanted}" if wanted not in ("", row["software"]) else "")
        words = [row["run"] or "waits", "" if row["online"] else "offline", version, f"not in {why}" if why else ""]
        click.echo(f"{row['node']:<20} " + "  ".join(printable(word) for word in words if word))


@click.command()
@click.argument("run")
@_where
def server_stop(run: str, runs: Path, url: str, token_file: Path | None) -> None:
    """Stop a run for good: its nodes are free at once, its process ends in order, its folder and report stay."""
    from coordinator.server.asking import Asked

    click.echo(Asked(runs, url, token_file).post(f"/api/runs/{quote(run, safe='')}/stop", {})["said"])


@click.command()
@click.argument("run")
@_where
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
@_JSON
def server_log(run: str, runs: Path, url: str, token_file: Path | None, follow: bool, as_json: bool) -> None:
    """What a run's process says: a line an event."""
    from coordinator.server.asking import Asked

    server, after = Asked(runs, url, token_file), 0
    while True:
        found = server.get(f"/api/runs/{quote(run, safe='')}/log?after={after}")
        for line in found["text"].splitlines():
            click.echo(line if as_json else _words(line))
        more, after = found["next"] != after, found["next"]
        if not more and (not follow or found["state"] in ("finished", "stopped", "failed")):
            return
        if not more:
            time.sleep(_FOLLOW_SECONDS)


def _words(line: str) -> str:
    """A line of the log for a person."""
    try:
        said = json.loads(line)
        at, message = str(said["time"])[:19].replace("T", " "), str(said["message"])
    except (ValueError, KeyError, TypeError):
        return printable(line)
    return printable(f"{at}  {message}")


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("run", "state", "rounds", "accuracy", "nodes", "attention", "by", "about"):
        table.add_column(name, justify="right" if name in ("rounds", "accuracy", "nodes", "attention") else "left")
    for row in rows:
        nodes = f"{row['nodes_online']}/{row['nodes']}" if row["nodes"] else ""
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
        cells = (row["run"], row["state"], f"{row['rounds_done']}/{row['rounds']}", accuracy, nodes)
        table.add_row(*map(Text, (*cells, str(row["attention"] or ""), row["by"], printable(row["words"]))))
    return table
