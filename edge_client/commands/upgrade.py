# SPDX-License-Identifier: Apache-2.0
"""`fedkrso client upgrade`: see docs/install.md."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_client.install.layout import Layout, system_layout, user_layout

if TYPE_CHECKING:
    from edge_client.upgrade.changing import Service
    from edge_client.upgrade.slots import Pinned, Slots

__all__ = ["client_upgrade"]

_path = click.Path(path_type=Path)


@click.command(
    epilog="\b\nExamples:\n  sudo fedkrso client upgrade --prepare          # once: the service starts what is chosen\n"
    "  sudo fedkrso client upgrade 0.3.0 --sha256 HASH\n  sudo fedkrso client upgrade --back"
)
@click.argument("version", required=False)
@click.option("--sha256", metavar="HASH", help="Of the version's wheel; no other counts.")
@click.option("--wanted", "is_wanted", is_flag=True, help="The version that the fleet's server wants to run here.")
@click.option("--back", "is_back", is_flag=True, help="The version before this one.")
@click.option("--prepare", is_flag=True, help="Have the service start what is chosen here, and look after each start.")
@click.option("--settle", "is_settle", is_flag=True, help="For the service, before each start.")
@click.option("--reported", "is_reported", is_flag=True, help="For the service, once it has reported.")
@click.option("--find-links", metavar="DIR|URL", help="Where wheels are, instead of pip's index.")
@click.option("--again", is_flag=True, help="Also a version that did not report here before.")
@click.option("--node", "node_file", type=_path, metavar="NODE.toml", help="By default the installed one.")
@click.option("--slots", type=_path, metavar="DIR", help="Where versions lie; by default beside this environment.")
@click.option("--restart", metavar="COMMAND", help="Instead of systemctl: starts the agent, and waits for its report.")
@click.option("--alive", metavar="COMMAND", help="Instead of systemctl: whether it runs.")
@click.option("--probation", type=float, default=30.0, show_default=True, help="Seconds for which it must go on.")
@click.option("--user", is_flag=True, help="The service of yours.")
def client_upgrade(
    version: str | None,
    sha256: str | None,
    is_wanted: bool,
    is_back: bool,
    prepare: bool,
    is_settle: bool,
    is_reported: bool,
    find_links: str | None,
    again: bool,
    node_file: Path | None,
    slots: Path | None,
    restart: str | None,
    alive: str | None,
    probation: float,
    user: bool,
) -> None:
    """Run another VERSION of the agent, and the one before again if it does not report.

    A version goes into an environment of its own beside the present one, with this environment's packages. Then the
    agent is started anew. If it does not connect, or ends soon after, the version before runs again, and the exit code
    is not 0. Without anything: which versions there are.
    """
    from edge_client.install.machine import run_program
    from edge_client.upgrade import changing
    from edge_client.upgrade.slots import Pinned, Slots
    from fedcore.errors import ConfigError
    from fedcore.system.locks import owned

    layout = user_layout(os.environ, Path.home()) if user else system_layout()
    held = Slots(*_places(slots), run_program)
    if is_back or version is not None or is_wanted:
        # Two at a time would take the free slot from each other.
        click.get_current_context().with_resource(owned(held.folder, "fedkrso client upgrade", remedy="wait for it"))
        held = Slots(*_places(slots), run_program)
    if is_settle:
        changing.settle(held, started=True)
    elif is_reported:
        changing.reported(held)
    elif prepare:
        _prepare(held, layout, node_file)
    elif is_back:
        click.echo(f"{changing.back(held, _service(layout, restart, alive, probation), run_program)} runs")
    elif version is None and not is_wanted:
        _show(held)
    else:
        if is_wanted:
            pinned = _wanted(held, node_file or layout.node_file)
            if pinned is None:
                click.echo("nothing else is wanted here")
                return
        else:
            if sha256 is None:
                words, remedy = "which wheel counts?", "--sha256 HASH, as sha256sum prints it"
                raise ConfigError(words, place="--sha256", remedy=remedy)
            pinned = Pinned(version=version or "", sha256=sha256)
        sources = () if find_links is None else ("--no-index", "--find-links", find_links)
        service = _service(layout, restart, alive, probation)
        if not changing.change(held, pinned, sources, service, run_program, again=again, say=click.echo):
            click.echo(f"{pinned.version} runs already")


def _places(given: Path | None) -> tuple[Path, Path]:
    """The slots' folder and the environment beside it; this program may lie in a slot itself."""
    here = Path(sys.prefix).absolute()
    if given is not None:
        return given.absolute(), here
    if (here.parent / "slots.json").exists():
        return here.parent, here
    return here.with_name(f"{here.name}-slots"), here


def _service(layout: Layout, restart: str | None, alive: str | None, probation: float) -> Service:
    from edge_client.install.layout import SERVICE
    from edge_client.upgrade.changing import Service

    systemctl = ("systemctl", "--user") if layout.user else ("systemctl",)
    return Service(
        (*systemctl, "restart", SERVICE) if restart is None else shlex.split(restart),
        (*systemctl, "is-active", "--quiet", SERVICE) if alive is None else shlex.split(alive),
        probation,
    )


def _wanted(slots: Slots, node_file: Path) -> Pinned | None:
    from edge_client.node import Node
    from edge_client.upgrade.wanted import wanted
    from fedcore.config.reading import load_config

    return wanted(load_config(node_file, Node), slots)


def _prepare(slots: Slots, layout: Layout, node_file: Path | None) -> None:
    """Files for systemd, once."""
    from edge_client.install.machine import look, run_program
    from edge_client.install.steps import apply
    from edge_client.upgrade.service import prepared

    machine = look(Path("/"), run_program, user=layout.user)
    slots.keep()
    slots.point(slots.current)
    apply(prepared(layout, slots, node_file or layout.node_file), machine, run_program, click.echo)


def _show(slots: Slots) -> None:
    from edge_client.upgrade.slots import SLOTS

    trying = slots.kept.trying
    for slot in SLOTS:
        version = slots.version(slot)
        words = ["runs" if slot == slots.current else "", "on trial" if trying and trying.slot == slot else ""]
        if version:
            click.echo(
                f"{slot:<5} {version:<12} {slots.path(slot)}  {', '.join(word for word in words if word)}".rstrip()
            )
