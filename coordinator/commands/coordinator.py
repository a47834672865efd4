# SPDX-License-Identifier: Apache-2.0
"""`fedkrso coordinator`: a run from the command line. Each command is a short call into `coordinator.coordinator`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coordinator.dashboard.address import DEFAULT_ADDRESS, address_of
from fedcore.errors import ConfigError
from fedcore.system.logs import LOG_FORMATS, Line, LogFormat

if TYPE_CHECKING:
    from coordinator.coordinator import Coordinator
    from coordinator.dashboard.server import Dashboard
    from coordinator.reports.gguf import GgufNumbers

__all__ = ["coordinator_export", "coordinator_resume", "coordinator_run", "told_how_to_go_on"]

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


def _lead_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """What both ways to lead a run have: where it lies, how it is told, and a dashboard."""
    for flag in (_NAMES, _TOKENS, _ADDRESS, _LOG, _JSON, _RUNS):
        command = flag(command)
    return command


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
    epilog="\b\nExamples:\n"
    "  fedkrso coordinator run job.toml --dashboard\n"
    "  fedkrso coordinator run job.toml --log-format json"
)
@click.argument("job_file", type=click.Path(path_type=Path), metavar="JOB.toml")
@click.option("--check", is_flag=True, help="Check the file, and the data and model that it names, and leave.")
@_lead_flags
def coordinator_run(job_file: Path, check: bool, runs: Path, **flags: Any) -> None:
    """Run a job: announce rounds, aggregate updates exactly, publish, evaluate, and end with a summary and a report."""
    from coordinator.coordinator import Coordinator

    coordinator = Coordinator.from_file(job_file, runs=runs, on_event=_before_the_run(**flags))
    if check:
        for line in coordinator.examine():
            click.echo(line)
        click.echo(f"{job_file} is right")
        return
    _lead(coordinator, **flags)


@click.command(
    epilog="\b\nExamples:\n"
    "  fedkrso coordinator resume voice --runs runs\n"
    "  fedkrso coordinator resume voice --rounds 12"
)
@click.argument("run")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help="Rounds in all, more than it has: also a finished run goes on, from its last state, once nodes come back.",
)
@_lead_flags
def coordinator_resume(run: str, rounds: int | None, runs: Path, **flags: Any) -> None:
    """Go on with a run after the coordinator was stopped or killed: same rounds, same digest."""
    from coordinator.coordinator import Coordinator

    _lead(Coordinator.resume(run, runs=runs, rounds=rounds, on_event=_before_the_run(**flags)), **flags)


def _before_the_run(*, as_json: bool, form: LogFormat | None, **_: Any) -> Callable[[Line], None]:
    """Tells what happens before there is a run to show: a GGUF file is imported, the broker is looked for."""
    told = ("model",) if as_json or form == "json" else ("model", "connecting")

    def tell(line: Line) -> None:
        if line.event in told:
            click.echo(line, err=True)

    return tell


def _lead(
    coordinator: Coordinator,
    *,
    as_json: bool,
    form: LogFormat | None,
    address: str | None,
    tokens: Path | None,
    names: tuple[str, ...],
) -> None:
    """Lead a run as the flags say: with a page or a log in the terminal, and a dashboard."""
    from coordinator.terminal.progress import Progress

    # As the end of a service or of a run at `fedkrso server`: what is done is kept, the last word is written.
    signal.signal(signal.SIGTERM, lambda *_: coordinator.stop())
    with _dashboard(address, tokens, names) as dashboard, told_how_to_go_on(coordinator), coordinator:
        progress = Progress(coordinator.job.run, form, as_json=as_json)
        coordinator.show_on(progress)
        if dashboard is not None:
            coordinator.show_on(dashboard)
            click.echo(dashboard.about, err=True)
        with progress:
            result = coordinator.run()
        if result.finished:
            progress.ended(result.summary, result.folder)
        else:
            click.echo(f"stopped: {_how_to_go_on(coordinator)}", err=True)


@contextlib.contextmanager
def told_how_to_go_on(coordinator: Coordinator) -> Iterator[None]:
    """Where somebody interrupts a run, what is kept of it and how it is gone on with."""
    try:
        yield
    except KeyboardInterrupt:
        if coordinator.folder.has_ledger():
            click.echo(f"interrupted: {_how_to_go_on(coordinator)}", err=True)
        raise


def _how_to_go_on(coordinator: Coordinator) -> str:
    root = coordinator.folder.root
    again = f"fedkrso coordinator resume {coordinator.job.run} --runs {root.parent}"
    return f"what nodes have sent is kept in {root}; go on with: {again}"


@click.command(
    epilog="\b\nExamples:\n"
    "  fedkrso coordinator export voice tuned\n"
    "  fedkrso coordinator export voice adapter --adapter --round best\n"
    "  fedkrso coordinator export voice tuned.gguf --gguf q8_0\n"
    "  fedkrso coordinator export voice tuned --plug-in models/full"
)
@click.argument("run")
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER|FILE")
@click.option("--adapter", is_flag=True, help="What was learned alone, as a LoRA adapter that PEFT loads.")
@click.option(
    "--gguf",
    is_flag=False,
    flag_value="q8_0",
    type=click.Choice(["q8_0", "f16", "f32"]),
    help="A file that llama.cpp loads, with weights in q8_0 if nothing is said.",
)
@click.option("--plug-in", "full", metavar="MODEL", help="The full model, with what was learned on its emulator in it.")
@click.option("--round", "which", default="last", show_default=True, metavar="last|best|N", help="Of which round.")
@click.option("--overwrite", is_flag=True, help="Also into a folder that holds something already.")
@_RUNS
def coordinator_export(
    run: str,
    folder: Path,
    adapter: bool,
    gguf: GgufNumbers | None,
    full: str | None,
    which: str,
    overwrite: bool,
    runs: Path,
) -> None:
    """Write the run's model to FOLDER, in the layout that `from_pretrained` loads; or what was learned of it, or a GGUF
    file."""
    if sum(map(bool, (adapter, gguf, full))) > 1:
        raise ConfigError("more than one form at once", place="--adapter --gguf --plug-in", remedy="leave others out")
    from coordinator.reports.adapter import export_adapter
    from coordinator.reports.export import export_run
    from coordinator.reports.gguf import export_gguf
    from coordinator.reports.lastmodel import which_round
    from coordinator.store.folder import RunFolder

    files, round_ = RunFolder(runs / run), which_round(which)
    if full is not None:
        from coordinator.offsite.plugin import export_plugged_in
        from fedcore.config.models import resolve_model_folder

        place = resolve_model_folder(full, place="--plug-in")
        words = export_plugged_in(files, folder, place, overwrite=overwrite, which=round_)
    elif gguf:
        words = export_gguf(files, folder, gguf, overwrite=overwrite, which=round_)
    else:
        words = (export_adapter if adapter else export_run)(files, folder, overwrite=overwrite, which=round_)
    click.echo(f"{folder}: {words}")
