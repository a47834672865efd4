# SPDX-License-Identifier: Apache-2.0
"""Where everything of an installed agent lies: for the whole device, or for one user without root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SERVER", "SERVICE", "SLICE", "Layout", "system_layout", "user_layout"]

SERVICE = "fedkrso-client"
SERVER = "fedkrso-serve"
"""Answers beside the agent, where the owner wants it."""
SLICE = "fedkrso.slice"
"""Holds both to one budget."""


@dataclass(frozen=True)
class Layout:
    """Absolute paths on the device that is installed, whatever folder stands for its root at this moment.

    Attributes:
        user: Whether it is for one user, under that user's own systemd.
        account: Who runs the agent; empty for whoever installs.
        configuration: Node file, certificates and keys.
        state: Outbox, replica, worker's log.
        cache: What can be made anew.
        units: Folder of the unit.
        accounts: systemd's description of the account; None where there is nobody to make.
    """

    user: bool
    account: str
    configuration: Path
    state: Path
    cache: Path
    units: Path
    accounts: Path | None

    @property
    def node_file(self) -> Path:
        """Where the node file lies."""
        return self.configuration / "node.toml"

    @property
    def unit(self) -> Path:
        """Where the service's unit lies."""
        return self.units / f"{SERVICE}.service"

    @property
    def server_unit(self) -> Path:
        """Where the unit of the server lies."""
        return self.units / f"{SERVER}.service"

    @property
    def slice_unit(self) -> Path:
        """Where the unit lies that holds agent and server together."""
        return self.units / SLICE

    @property
    def model(self) -> Path:
        """A model folder that was copied here."""
        return self.state / "model"


def system_layout() -> Layout:
    """A service of the device, with a user of its own."""
    return Layout(
        user=False,
        account="fedkrso",
        configuration=Path("/etc/fedkrso"),
        state=Path("/var/lib/fedkrso"),
        cache=Path("/var/cache/fedkrso"),
        units=Path("/etc/systemd/system"),
        accounts=Path("/etc/sysusers.d/fedkrso.conf"),
    )


def user_layout(environment: Mapping[str, str], home: Path) -> Layout:
    """A service of one user, in the folders of the XDG base directory specification.

    Example:
        >>> user_layout({"XDG_STATE_HOME": "/data/state"}, Path("/home/ann")).state.as_posix()
        '/data/state/fedkrso'
    """

    def base(variable: str, usual: str) -> Path:
        found = Path(environment.get(variable, ""))
        # The specification: what is not absolute is not to be used.
        return found if found.is_absolute() else home / usual

    configuration = base("XDG_CONFIG_HOME", ".config")
    return Layout(
        user=True,
        account="",
        configuration=configuration / "fedkrso",
        state=base("XDG_STATE_HOME", ".local/state") / "fedkrso",
        cache=base("XDG_CACHE_HOME", ".cache") / "fedkrso",
        units=configuration / "systemd/user",
        accounts=None,
    )
