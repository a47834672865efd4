# SPDX-License-Identifier: Apache-2.0
"""Installing and taking away, as steps: pure functions of what was asked for and what the device is."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_client.install.layout import SERVER, SERVICE, Layout
from edge_client.install.machine import Machine
from edge_client.install.nodefile import Kit, NodeFile
from edge_client.install.steps import Command, File, Folder, Gone, Step, Tree
from edge_client.install.unit import Service, reading, slice_text, unit_text
from fedcore.errors import ConfigError

__all__ = ["Program", "check_readable", "install_plan", "uninstall_plan"]

# Whoever may use the accelerator, where there is one.
_DEVICE_GROUPS = ("video", "render")


@dataclass(frozen=True)
class Program:
    """The installed program: its path, and the folders that Python needs to run it."""

    path: Path
    folders: tuple[Path, ...]


def install_plan(
    layout: Layout,
    machine: Machine,
    program: Program,
    node_file: NodeFile,
    kit: Kit,
    *,
    copy_model: Path | None = None,
    start: bool = True,
    serve: bool = False,
) -> list[Step]:
    """Everything that an installed agent needs, in order; what a server of an earlier installation left, where none is
    wanted now, goes.

    Args:
        layout: Where it goes.
        machine: The device.
        program: What the service runs.
        node_file: Checked.
        kit: Certificates and keys.
        copy_model: The model folder to copy to the device's state, if it is not to be used where it lies.
        start: Whether to start it now.
        serve: Whether a server answers beside the agent (`fedkrso client serve`).
    """
    own = f"{layout.account}:{layout.account}" if layout.account else ""
    shared = f"root:{layout.account}" if layout.account else ""
    steps: list[Step] = [*_account(layout, machine)]
    steps += [
        Folder(layout.configuration, 0o700 if layout.user else 0o750, shared),
        Folder(layout.state, 0o700 if layout.user else 0o750, own),
    ]
    if copy_model is not None:
        steps.append(Tree(layout.model, copy_model))
    # A private key must be readable by its user alone, group and root's own group included.
    files = [
        File(
            layout.configuration / file.name,
            file.content,
            0o600 if file.secret else 0o640,
            own if file.secret else shared,
            file.secret,
        )
        for file in kit.files
    ]
    files.append(File(layout.node_file, node_file.text.encode(), 0o600 if layout.user else 0o640, shared))
    # Only a service of the device has walls that paths must be let through.
    reads = (
        ()
        if layout.user
        else reading([*node_file.reads, *(path for path in program.folders if not path.is_relative_to("/usr"))])
    )
    budget, start_of = node_file.budget_bytes, (str(program.path), "client")
    agent = Service((*start_of, "run", str(layout.node_file), "--stay"), budget, reads, shared=serve)
    files.append(File(layout.unit, unit_text(layout, agent, machine.systemd).encode(), 0o644))
    names = [SERVICE]
    if serve:
        server = Service((*start_of, "serve", str(layout.node_file)), budget, reads, "server", shared=True)
        files.append(File(layout.server_unit, unit_text(layout, server, machine.systemd).encode(), 0o644))
        files.append(File(layout.slice_unit, slice_text(layout, budget).encode(), 0o644))
        names.append(SERVER)
    else:
        steps += _server_gone(layout, machine)
    everything = [step.path for step in steps + files if not isinstance(step, Command)]
    return [*steps, *files, *_services(layout, machine, everything, names, start=start)]


def uninstall_plan(layout: Layout, machine: Machine, *, purge: bool) -> list[Step]:
    """Stop the agent and take its service away; with `purge` its configuration, keys, model and state too."""
    steps: list[Step] = []
    systemctl = _systemctl(layout, machine)
    if machine.path(layout.unit).exists():
        steps.append(_disable(layout, machine, SERVICE))
    steps += [*_server_gone(layout, machine), Gone(layout.unit)]
    if machine.running:
        steps.append(Command((*systemctl, "daemon-reload"), if_changed=_units(layout)))
    if purge:
        drop_ins = [unit.with_name(f"{unit.name}.d") for unit in _units(layout)]
        steps += [Gone(path) for path in (*drop_ins, layout.configuration, layout.state, layout.cache)]
        if layout.accounts is not None:
            steps.append(Gone(layout.accounts))
            if machine.running:
                steps.append(Command(("userdel", layout.account), if_changed=(layout.accounts,)))
    return steps


def check_readable(paths: Iterable[Path], layout: Layout) -> None:
    """Refuse data and models that the service's own user could not read.

    Raises:
        ConfigError: Only its owner may read it.
    """
    if layout.user:
        return
    for path in paths:
        for part in [path, *(path.iterdir() if path.is_dir() else ())]:
            mode = part.stat().st_mode
            if not mode & stat.S_IROTH or (part.is_dir() and not mode & stat.S_IXOTH):
                raise ConfigError(
                    f"the service's user {layout.account!r} may not read it",
                    place=str(part),
                    remedy=f"chmod -R o+rX {path}, or install as its owner with --user",
                )


def _account(layout: Layout, machine: Machine) -> Iterable[Step]:
    if layout.accounts is None:
        return
    groups = [group for group in _DEVICE_GROUPS if group in machine.groups]
    lines = [
        f'u {layout.account} - "fedkrso edge client" {layout.state}',
        *(f"m {layout.account} {group}" for group in groups),
    ]
    yield File(layout.accounts, ("\n".join(lines) + "\n").encode(), 0o644)
    place = () if machine.running else (f"--root={machine.root}",)
    unless = ("getent", "passwd", layout.account) if machine.running else ()
    yield Command(
        ("systemd-sysusers", *place, str(machine.path(layout.accounts))), if_changed=(layout.accounts,), unless=unless
    )


def _services(
    layout: Layout, machine: Machine, everything: Sequence[Path], names: Sequence[str], *, start: bool
) -> Iterable[Step]:
    systemctl = _systemctl(layout, machine)
    enabled = [
        Command((*systemctl, "enable", name), unless=(*systemctl, "is-enabled", "--quiet", name)) for name in names
    ]
    if not machine.running:
        # For one user of a system that is not running there is no way to ask.
        if not layout.user:
            yield from enabled
        return
    yield Command((*systemctl, "daemon-reload"), if_changed=_units(layout))
    yield from enabled
    if start:
        for name in names:
            yield Command(
                (*systemctl, "restart", name),
                if_changed=tuple(everything),
                unless=(*systemctl, "is-active", "--quiet", name),
            )


def _server_gone(layout: Layout, machine: Machine) -> Iterable[Step]:
    """The server's unit and the slice, where an earlier installation made them."""
    if machine.path(layout.server_unit).exists():
        yield _disable(layout, machine, SERVER)
        yield from (Gone(layout.server_unit), Gone(layout.slice_unit))


def _disable(layout: Layout, machine: Machine, name: str) -> Command:
    return Command((*_systemctl(layout, machine), "disable", *(["--now"] if machine.running else []), name))


def _units(layout: Layout) -> tuple[Path, ...]:
    return layout.unit, layout.server_unit, layout.slice_unit


def _systemctl(layout: Layout, machine: Machine) -> tuple[str, ...]:
    if not machine.running:
        return ("systemctl", f"--root={machine.root}")
    return ("systemctl", "--user") if layout.user else ("systemctl",)
