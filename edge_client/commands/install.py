# SPDX-License-Identifier: Apache-2.0
"""`fedkrso client install`, `uninstall`, `status`, `logs` and `bundle`: see docs/install.md."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from edge_client.install.layout import Layout, system_layout, user_layout
from fedcore.errors import ConfigError, FedkrsoError

if TYPE_CHECKING:
    from edge_client.install.machine import Machine
    from edge_client.install.plan import Program
    from edge_client.install.wheels import Target

__all__ = ["client_bundle", "client_install", "client_logs", "client_status", "client_uninstall"]

F = TypeVar("F", bound=Callable[..., Any])
_ASKED = {
    "node": "This node's id",
    "run": "The run it takes part in",
    "model_folder": "Folder of the run's model on this device",
    "data.source": "File with this device's text (.csv, .tsv, .jsonl)",
}
_path = click.Path(path_type=Path)
_user = click.option("--user", is_flag=True, help="A service of yours, without root: it runs while you are logged in.")
_root = click.option(
    "--root",
    type=_path,
    default=Path("/"),
    help="A system that is not running, such as a mounted card; nothing is started.",
)
_dry_run = click.option("--dry-run", is_flag=True, help="Show every file and command, and change nothing.")


def _about_the_node(command: F) -> F:
    """Flags that say what a node file says; each is a dotted key of it."""
    for option in reversed(
        (
            click.option(
                "--from", "source", type=_path, help="The node's folder, as `fedkrso provision` made it: nodes/ID."
            ),
            click.option("--node", help="This node's id; the certificate's name by default."),
            click.option("--run", help="The run it takes part in."),
            click.option(
                "--broker", "broker_url", help="mqtts://host:port, if it is not the one of the node's folder."
            ),
            click.option("--model", "model_folder", help="Folder of the run's model, or package:folder."),
            click.option("--data", "data_source", help="File with this device's text: .csv, .tsv or .jsonl."),
            click.option("--text", "data_text", help="Its column with the text."),
            click.option("--text-pair", "data_text_pair", help="Its column with the second text."),
            click.option("--label", "data_label", help="Its column with the label."),
            click.option(
                "--budget",
                "memory_budget",
                help="Memory for agent and worker together: 2.5GiB, or 60% of the device's.",
            ),
        )
    ):
        command = option(command)
    return command


@click.command()
@_about_the_node
@click.option(
    "--copy-model", is_flag=True, help="Copy the model folder to the device's state, instead of using it where it lies."
)
@click.option(
    "--serve/--no-serve",
    default=None,
    help="A second service answers over HTTP from what the node has learned: `fedkrso client serve`.  [default: as it"
    " is installed, or not]",
)
@click.option("--no-start", is_flag=True, help="Enable it for the next start of the device, and do not start it now.")
@_user
@_root
@click.option("--program", type=_path, help="The program that the service runs; this one by default.")
@_dry_run
def client_install(
    source: Path | None,
    copy_model: bool,
    serve: bool | None,
    no_start: bool,
    user: bool,
    root: Path,
    program: Path | None,
    dry_run: bool,
    **said: str | None,
) -> None:
    """Make this node a service of its device: configuration, keys, a systemd unit within the memory budget.

    Asks for what is missing where there is a terminal. What is installed already is kept or brought up to date: a
    second time with nothing new changes nothing, and what you wrote into the node file stays."""
    from edge_client.install.machine import run_program
    from edge_client.install.nodefile import finished, merge, open_kit, started
    from edge_client.install.plan import check_readable, install_plan
    from edge_client.install.steps import apply, described
    from edge_client.process.packages import require_serving_packages, require_training_packages
    from fedcore.config.models import resolve_model_folder

    layout, root = _layout(user=user), root.absolute()
    machine = _machine(root, user=user, dry_run=dry_run)
    serve = machine.path(layout.server_unit).exists() if serve is None else serve
    if program is None and not dry_run:
        require_training_packages()
        if serve:
            require_serving_packages()
    installed = machine.path(layout.node_file)
    if source is None and not installed.exists():
        raise ConfigError(
            "nothing is installed yet",
            place="--from",
            remedy="write the node's folder that `fedkrso provision` made: --from nodes/ID",
        )
    # What is installed is a node's folder too; its modes are put right, and its certificate is looked at.
    kit = open_kit(source or installed.parent)
    document = started(installed if installed.exists() else None, kit, _from_here(_dotted(said)))
    merge(document, _asked(document))
    # Once copied, it is the one in the device's state.
    copied = copy_model and document.get("model_folder") != str(layout.model)
    model = resolve_model_folder(str(document.get("model_folder", "")), place="--model") if copied else None
    node_file = finished(document, layout, kit, root=root, copied=None if model is None else layout.model)
    check_readable(node_file.reads, layout)
    steps = install_plan(
        layout, machine, _program(program), node_file, kit, copy_model=model, start=not no_start, serve=serve
    )
    if dry_run:
        click.echo("\n".join(map(described, steps)))
        return
    done = apply(steps, machine, run_program, click.echo)
    if not done:
        click.echo("nothing to do: it is installed like this already")
    elif machine.running and not no_start:
        click.echo(f"node {node_file.node.node} runs: fedkrso client status{' --user' * user}")
        if serve:
            section = node_file.node.serve
            click.echo(f"it answers at http://{section.host}:{section.port}, once its server is up")


@click.command()
@click.option(
    "--purge", is_flag=True, help="Its configuration, keys, model and state too: updates that were not sent are lost."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_user
@_root
@_dry_run
def client_uninstall(purge: bool, yes: bool, user: bool, root: Path, dry_run: bool) -> None:
    """Stop the agent and take its service away; configuration, keys and state stay, unless --purge is given."""
    from edge_client.install.machine import run_program
    from edge_client.install.plan import uninstall_plan
    from edge_client.install.steps import apply, described

    layout, root = _layout(user=user), root.absolute()
    machine = _machine(root, user=user, dry_run=dry_run)
    steps = uninstall_plan(layout, machine, purge=purge)
    if dry_run:
        click.echo("\n".join(map(described, steps)))
        return
    if purge and not yes:
        click.confirm(f"Remove {layout.configuration} with its keys, and {layout.state}?", abort=True)
    if not apply(steps, machine, run_program, click.echo):
        click.echo("nothing to do: nothing is installed")
    elif not purge:
        click.echo(f"kept: {layout.configuration}, {layout.state}")


@click.command()
@click.option("-n", "--lines", default=5, show_default=True, help="Last lines of the log.")
@_user
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def client_status(lines: int, user: bool, as_json: bool) -> None:
    """Show the installed agent: its service, what the node does, its memory, its last lines. Exit code 1 if it does not
    run."""
    from edge_client.install.machine import run_program
    from edge_client.install.service import service_status

    found = service_status(_layout(user=user), run_program, lines=lines)
    click.echo(msgspec.json.encode(found) if as_json else found.text())
    if not found.active:
        raise click.exceptions.Exit(1)


@click.command()
@click.option("-n", "--lines", default=100, show_default=True, help="How many to begin with.")
@click.option("-f", "--follow", is_flag=True, help="Wait for more.")
@_user
def client_logs(lines: int, follow: bool, user: bool) -> None:
    """Show the installed agent's log, from the system's journal."""
    from edge_client.install.service import journal

    try:
        code = subprocess.run(journal(_layout(user=user), lines=lines, follow=follow), check=False).returncode
    except FileNotFoundError:
        raise ConfigError(
            "no journalctl", place="fedkrso client logs", remedy="the log is where your own service manager puts it"
        ) from None
    if code:
        raise click.exceptions.Exit(code)


@click.command()
@click.argument("folder", type=_path, metavar="DIR")
@_about_the_node
@click.option("--verify", is_flag=True, help="Check the bundle in DIR, and make nothing.")
@click.option(
    "--target", help="The board: jetpack-6, jetpack-7, raspberry-pi-os-12, ubuntu-22.04, ...; this machine by default."
)
@click.option(
    "--light",
    is_flag=True,
    help="The agent alone, which cannot train: the board has or gets the training packages otherwise.",
)
@click.option("--torch-wheel", type=_path, help="The board's own wheel of torch, as from NVIDIA's index for Jetson.")
@click.option("--system-torch", is_flag=True, help="The board's own Python has torch already.")
@click.option("--wheel", "own", type=_path, help="fedkrso's own wheel; built from the checkout or fetched by default.")
def client_bundle(
    folder: Path,
    source: Path | None,
    verify: bool,
    target: str | None,
    light: bool,
    torch_wheel: Path | None,
    system_torch: bool,
    own: Path | None,
    **said: str | None,
) -> None:
    """Make a folder DIR to carry to a board without internet: wheels, model, keys, node file, and install.sh.

    It holds the node's keys: carry it like one. What is not said here is asked for on the board.
    """
    from edge_client.install.bundle import Contents, make_bundle, verify_bundle
    from edge_client.install.machine import run_program
    from edge_client.install.nodefile import open_kit, started

    if verify:
        click.echo(f"{folder} is whole: sha256 {verify_bundle(folder)}")
        return
    if source is None:
        raise ConfigError(
            "a bundle is for one node",
            place="--from",
            remedy="write the node's folder that `fedkrso provision` made: --from nodes/ID",
        )
    kit = open_kit(source)
    data = said["data_source"]
    if data is not None and not Path(data).is_absolute() and (":" not in data or "/" in data):
        raise ConfigError(
            "where on the board is it?",
            place=f"--data: {data}",
            remedy="write its whole path there, or leave it for install.sh",
        )
    model = said.pop("model_folder")
    document = started(None, kit, _dotted(said))
    contents = Contents(
        kit, document, model, _target(target),
        extras="" if light else "train", own=own, torch=torch_wheel, system_torch=system_torch,
    )  # fmt: skip
    digest = make_bundle(folder, contents, run_program)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    click.echo(f"{folder}: {size / 1e6:,.0f} MB, sha256 of SHA256SUMS {digest}")
    click.echo("carry it to the board, and there: sudo ./install.sh" + ("" if said["data_source"] else " --data FILE"))


def _layout(*, user: bool) -> Layout:
    return user_layout(os.environ, Path.home()) if user else system_layout()


def _dotted(said: Mapping[str, str | None]) -> dict[str, str | None]:
    """Flags by the key that they stand for."""
    return {
        key.replace("_", ".", 1) if key.startswith(("data_", "broker_")) else key: value for key, value in said.items()
    }


def _from_here(said: dict[str, str | None]) -> dict[str, str | None]:
    """What was typed here is seen from here; names of packages stay names."""
    for key in ("model_folder", "data.source"):
        value = said.get(key)
        if value is not None and not (":" in value and "/" not in value):
            said[key] = str(Path(value).expanduser().absolute())
    return said


def _target(name: str | None) -> Target:
    from edge_client.install.wheels import TARGETS, this_machine

    if name is None:
        return this_machine()
    if name not in TARGETS:
        raise ConfigError(f"no target {name!r}", place="--target", remedy=f"one of {', '.join(TARGETS)}")
    return TARGETS[name]


def _asked(document: Mapping[str, Any]) -> dict[str, str | None]:
    """What is missing, asked for on a terminal; elsewhere the refusal names the flags."""
    from edge_client.install.nodefile import missing

    gone = missing(document)
    if not gone or not sys.stdin.isatty():
        return {}
    said: dict[str, str | None] = {key: click.prompt(_ASKED[key]) for key in gone}
    if "data.source" in gone:
        said["data.text"] = click.prompt("Its column with the text", default="text")
        said["data.label"] = click.prompt("Its column with the label", default="label")
    if "memory_budget" not in document:
        said["memory_budget"] = click.prompt("Memory for training, of the device's", default="60%")
    return _from_here(said)


def _machine(root: Path, *, user: bool, dry_run: bool) -> Machine:
    from edge_client.install.machine import Machine, look, run_program

    if user and root != Path("/"):
        raise ConfigError(
            "a service of one user belongs to a running system", place="--root", remedy="leave --user or --root out"
        )
    try:
        return look(root, run_program, user=user)
    except FedkrsoError:
        if not dry_run:
            raise
        # A plan can be shown with whatever rights we have, as for a device with an accelerator.
        return Machine(root, 0, frozenset({"video", "render"}), is_root=False)


def _program(given: Path | None) -> Program:
    """What the service runs: this program, in its environment, with the Python beneath it."""
    from edge_client.install.plan import Program

    path = (given or Path(sys.prefix) / "bin/fedkrso").absolute()
    if not path.is_file():
        raise ConfigError(
            "no such program",
            place=f"--program: {path}",
            remedy="install fedkrso into an environment: python3 -m venv /opt/fedkrso",
        )
    folders = () if given is not None else tuple(dict.fromkeys(map(Path, (sys.prefix, sys.base_prefix))))
    return Program(path, folders)
