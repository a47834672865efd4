# SPDX-License-Identifier: Apache-2.0
"""What systemd is told so that the agent's service starts the chosen version: a drop-in beside the unit, and units that
obey the fleet's server. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_client.install.layout import SERVICE, Layout
from edge_client.install.steps import Command, File, Step
from edge_client.owner.accepting import RELEASE_FILE
from edge_client.upgrade.slots import BASE, Slots

__all__ = ["prepared"]

_UPGRADE = "fedkrso-upgrade"
# An installation takes a while on a board.
_SECONDS = 1800


def prepared(layout: Layout, slots: Slots, node_file: Path) -> list[Step]:
    """Files and commands, in order.

    Args:
        layout: Of the installed agent.
        slots: Where versions lie.
        node_file: The node's.
    """
    systemctl = ("systemctl", "--user") if layout.user else ("systemctl",)
    files = list(_files(layout, slots, node_file))
    paths = tuple(file.path for file in files)
    return [
        *files,
        Command((*systemctl, "daemon-reload"), if_changed=paths),
        Command((*systemctl, "enable", "--now", f"{_UPGRADE}.path"), if_changed=paths),
    ]


def _files(layout: Layout, slots: Slots, node_file: Path) -> Iterator[File]:
    # The environment that was installed by hand judges the others: it stays as it is, whatever they are.
    judge = f"{slots.path(BASE)}/bin/fedkrso client upgrade --slots {slots.folder}{' --user' * layout.user}"
    # The agent's own user may not choose what it is.
    rights = "" if layout.user else "+"
    drop_in = f"""\
# Made by `fedkrso client upgrade --prepare`: the service runs the version that is chosen, and a version that does not
# report three times in a row is left.
[Service]
ExecStartPre={rights}{judge} --settle
ExecStart=
ExecStart={slots.link}/bin/fedkrso client run {node_file} --stay
ExecStartPost={rights}{judge} --reported
"""
    yield File(layout.units / f"{SERVICE}.service.d" / "50-version.conf", drop_in.encode(), 0o644)
    path = f"""\
[Unit]
Description=fedkrso, a version that the fleet's server wants

[Path]
PathChanged={layout.state / RELEASE_FILE}

[Install]
WantedBy={"default.target" if layout.user else "multi-user.target"}
"""
    yield File(layout.units / f"{_UPGRADE}.path", path.encode(), 0o644)
    service = f"""\
[Unit]
Description=fedkrso, to the version that the fleet's server wants

[Service]
Type=oneshot
ExecStart={judge} --wanted --node {node_file}
TimeoutStartSec={_SECONDS}
"""
    yield File(layout.units / f"{_UPGRADE}.service", service.encode(), 0o644)
