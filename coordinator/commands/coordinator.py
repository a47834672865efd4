# SPDX-License-Identifier: Apache-2.0
"""The coordinator's commands."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from coordinator.dashboard.address import DEFAULT_ADDRESS, address_of
from coordinator.job import Job
from coordinator.store.view import RunView
from fedcore.errors import ConfigError, RunError
from fedcore.system.logs import LOG_FORMATS, LogFormat

if TYPE_CHECKING:
    from coordinator.dashboard.server import Dashboard
    from coordinator.terminal.progress import Progress

__all__ = ["bench_aggregate", "broker_run", "coordinator_export", "coordinator_resume", "coordinator_run"]

_RUNS = click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="As --log-format json, and the summary as the last line.")
_LOG = click.option(
    "--log-format",
    "form",
    type=click.Choice(LOG_FORMATS),
    help="One line an event; by default a live page on a terminal.",
)


def _address(text: str | None) -> str | None:
    """Looked at while the line is read: `--dashboard JOB.toml` would miss its job otherwise."""
    if text is not None:
        address_of(text)
    return text


_ADDRESS = click.option(
    "--dashboard",
    "address",
    is_flag=False,
    flag_value=DEFAULT_ADDRESS,
    metavar="[HOST:PORT]",
    callback=lambda context, parameter, text: _address(text),
    help=f"Show the run in a browser, by default at {DEFAULT_ADDRESS}; port 0: a free one.",
)
_TOKENS = click.option(
    "--dashboard-token-file",
    "tokens",
    type=click.Path(path_type=Path),
    help="Whoever knows a token of this file may pause, end rounds and exclude nodes.",
)
_NAMES = click.option(
    "--dashboard-name",
    "names",
    multiple=True,
    help="A host name that a reverse proxy gives the dashboard; repeat for more.",
)


def _dashboard_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    return _ADDRESS(_TOKENS(_NAMES(command)))


def _dashboard(
    address: str | None, tokens: Path | None, names: tuple[str, ...]
) -> contextlib.AbstractContextManager[Dashboard | None]:
    """The dashboard that the flags ask for, with its address taken."""
    if address is None:
        if tokens or names:
            raise ConfigError("a dashboard's flags without --dashboard", remedy="add --dashboard")
        return contextlib.nullcontext()
    from coordinator.dashboard.server import Dashboard

    return Dashboard(address, token_file=tokens, names=names)


@click.command(
    epilog="\b\nExamples:\n  fedkrso coordinator run job.toml --dashboard\n"
    "  fedkrso coordinator run job.toml --log-format json"
)
@click.argument("job_file", type=click.Path(path_type=Path), metavar="JOB.toml")
@click.option("--check", is_flag=True, help="Check the file and leave.")
@_RUNS
@_JSON
@_LOG
@_dashboard_flags
def coordinator_run(
    job_file: Path,
    check: bool,
    runs: Path,
    as_json: bool,
    form: LogFormat | None,
    address: str | None,
    tokens: Path | None,
    names: tuple[str, ...],
) -> None:
    """Run a job: announce rounds, aggregate updates exactly, publish, evaluate, and end with a summary and a report."""
    from fedcore.config.broker import mqtt_settings
    from fedcore.config.models import resolve_model_folder
    from fedcore.config.reading import load_config

    job = load_config(job_file, Job)
    resolve_model_folder(job.model.folder, place=f"{job_file}: model.folder")
    mqtt_settings(job.broker, "check")
    if check:
        click.echo(f"{job_file} is right")
        return
    root = runs / job.run
    if (root / "ledger.sqlite").exists():
        raise RunError(
            f"run {job.run!r} is already there",
            place=str(root),
            remedy=f"fedkrso coordinator resume {job.run} --runs {runs}, or another name",
        )
    with _dashboard(address, tokens, names) as dashboard:
        root.mkdir(parents=True, exist_ok=True)
        # Beside and renamed: a job that was cut short could not be resumed.
        keep = root / "job.json.new"
        keep.touch(mode=0o600)
        keep.write_bytes(msgspec.json.format(msgspec.json.encode(job)))
        keep.replace(root / "job.json")
        _serve(job, root, _progress(job.run, form, as_json=as_json), dashboard)


@click.command(epilog="\b\nExample:\n  fedkrso coordinator resume voice --runs runs")
@click.argument("run")
@_RUNS
@_JSON
@_LOG
@_dashboard_flags
def coordinator_resume(
    run: str,
    runs: Path,
    as_json: bool,
    form: LogFormat | None,
    address: str | None,
    tokens: Path | None,
    names: tuple[str, ...],
) -> None:
    """Go on with a run after the coordinator was stopped or killed: same rounds, same digest."""
    root = runs / run
    job = _stored_job(root)
    with _dashboard(address, tokens, names) as dashboard:
        _serve(job, root, _progress(job.run, form, as_json=as_json), dashboard)


@click.command()
@click.argument("run")
@click.argument("folder", type=click.Path(path_type=Path))
@_RUNS
def coordinator_export(run: str, folder: Path, runs: Path) -> None:
    """Write the run's last model to FOLDER, in the layout that `from_pretrained` loads."""
    from coordinator.reports.export import export_model
    from coordinator.run.prepare import prepare
    from coordinator.store.folder import RunFolder, load_state
    from coordinator.store.ledger import SqliteLedger
    from fedcore.config.models import resolve_model_folder
    from fedcore.methods import server_half
    from fedcore.model.base import Base
    from fedcore.subspaces.informed import read_informed
    from fedcore.weights.checkpoint import Checkpoint

    root = runs / run
    job = _stored_job(root)
    files, ledger = RunFolder(root), SqliteLedger(RunFolder(root).ledger)
    rows = ledger.rounds()
    if not rows:
        raise RunError("no round is finished yet", place=str(root))
    model_folder = resolve_model_folder(job.model.folder, place="model.folder")
    prepared = prepare(job, model_folder, files, ledger)
    base = Base(Checkpoint(model_folder), prepared.schema, job.model.base, files.base)
    state = load_state(files.state(rows[-1].round)).publish()
    plan = ledger.plan(rows[-1].round)
    if plan is not None and base.generation < plan.training.generation:
        raise RunError(
            "the merged base is damaged",
            place=str(files.base),
            remedy=f"fedkrso coordinator resume {run} makes it anew",
        )
    if plan is not None and base.generation > plan.training.generation:
        # The next round is open, and what this one learned is in the base already.
        state = state.refreshed(plan.training, prepared.schema)
    training = server_half(job.method, prepared.informed).training(rows[-1].round, job.seed)
    informed = None
    if training.informed:
        informed = read_informed(
            files.informed, training.informed, prepared.schema, training.informed_subspaces, training.rank
        )
    export_model(base, state, prepared.schema, prepared.job.task, training, folder, informed)
    click.echo(f"{folder}: {prepared.schema.architecture} of round {rows[-1].round}")


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("broker"),
    show_default=True,
    help="Configuration and log.",
)
@click.option(
    "--user", "users", multiple=True, default=("fedkrso",), show_default=True, help="A user; repeat for more."
)
@click.option("--port", default=1883, show_default=True)
@click.option("--kind", type=click.Choice(["mosquitto", "amqtt"]), help="By default mosquitto where there is one.")
def broker_run(folder: Path, users: tuple[str, ...], port: int, kind: str | None) -> None:
    """Run a broker on the loopback interface, with generated passwords: for a first run on one machine."""
    from coordinator.provisioning.broker import LocalBroker

    with LocalBroker(folder, users, kind=kind, port=port) as broker:  # type: ignore[arg-type]
        click.echo(f"{broker.kind} at {broker.url}")
        for user in users:
            click.echo(f"\n# for {user}\n{broker.sections(user)}", nl=False)
        broker.wait()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def bench_aggregate(as_json: bool) -> None:
    """Exact aggregation: elements per second on one core, and memory as participants grow from 2 to 50."""
    from coordinator.commands.bench_aggregate import rows

    found = list(rows())
    if as_json:
        click.echo(json.dumps({"rows": found}, indent=1))
        return
    click.echo(f"{'participants':>12} {'bits':>5} {'M elements/s':>13} {'float32 mean M/s':>17} {'memory MB':>10}")
    for row in found:
        click.echo(
            f"{row['participants']:12} {row['bits']:5} {row['elements_per_second'] / 1e6:13.0f} "
            f"{row['float_elements_per_second'] / 1e6:17.0f} {row['sum_bytes'] / 1e6:10.1f}"
        )


def _stored_job(root: Path) -> Job:
    try:
        return msgspec.json.decode((root / "job.json").read_bytes(), type=Job)
    except FileNotFoundError:
        known = sorted(path.parent.name for path in root.parent.glob("*/job.json"))
        raise RunError(
            f"no run {root.name!r}", place=str(root.parent), remedy=f"runs: {', '.join(known) or 'none'}"
        ) from None
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), place=str(root / "job.json")) from None


def _progress(run: str, form: LogFormat | None, *, as_json: bool) -> Progress:
    from coordinator.terminal.progress import Progress

    return Progress(run, form, as_json=as_json)


def _serve(job: Job, root: Path, progress: Progress, dashboard: Dashboard | None) -> None:
    from coordinator.messages.senders import Senders
    from coordinator.reports.summary import summary_of, write_report, write_summary
    from coordinator.run.prepare import prepare
    from coordinator.run.service import Coordinator
    from coordinator.store.folder import RunFolder
    from coordinator.store.ledger import SqliteLedger
    from coordinator.store.viewfile import ViewFile, running_coordinator
    from fedcore.config.broker import mqtt_settings
    from fedcore.config.models import resolve_model_folder
    from fedcore.transport.mqtt import MqttTransport
    from fedcore.wire.identity import load_signing_key

    files = RunFolder(root)
    other = running_coordinator(files.view)
    if other is not None:
        raise RunError(
            f"its coordinator runs already, as process {other}", place=str(root), remedy="stop that one first"
        )
    ledger = SqliteLedger(files.ledger)
    if ledger.fact("started_at", float) is None:
        ledger.put_fact("started_at", time.time())
    first = RunView(job.run, job.method.name, job.round.rounds, phase="preparing", rows=ledger.rounds())
    with ViewFile(files.view, first) as picture, progress:
        model_folder = resolve_model_folder(job.model.folder, place="model.folder")
        prepared = prepare(job, model_folder, files, ledger)
        # Spreads reconnects; decides nothing in the model.
        jitter = random.Random(secrets.randbits(64))  # noqa: S311
        transport = MqttTransport(mqtt_settings(job.broker, f"fedkrso-{job.run}-coordinator"), jitter)
        trust = job.trust
        key = None if trust.signing_key is None else load_signing_key(Path(trust.signing_key))
        senders = Senders(job.run, None if trust.enrolled is None else Path(trust.enrolled))
        observers = [progress.show, picture.show]

        def observe(view: RunView) -> None:
            for show in observers:
                show(view)

        coordinator = Coordinator(prepared, files, ledger, transport, senders=senders, key=key, observer=observe)
        if dashboard is not None:
            observers.append(dashboard.observe)
            dashboard.start(coordinator.view, coordinator.command, files.ledger)
            click.echo(dashboard.about, err=True)
        view = coordinator.run()
    summary = summary_of(view, ledger.counts("refused"))
    ledger.close()
    write_summary(files.summary, summary)
    write_report(files.report, summary)
    progress.ended(summary, files)
