# SPDX-License-Identifier: Apache-2.0
"""A fleet in a provisioned folder: rules for all runs that there will be, and a certificate for each run at once, since
a broker that knows its clients by their certificates lets each name in once."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec

from coordinator.provisioning.provision import Provisioned, provision
from coordinator.provisioning.register import Yard, load_register, save_register
from fedcore.errors import ConfigError

__all__ = ["make_fleet"]

_MOST = 64


def make_fleet(folder: Path, fleet: str, at_once: int, *, now: dt.datetime, days: int = 730) -> Provisioned:
    """Let the nodes of a folder be a fleet.

    Args:
        folder: In which the fleet's name was provisioned as a run's is.
        fleet: Its name.
        at_once: Runs that have a process at a time; fewer than before changes nothing.
        now: The time, with its zone.
        days: How long new certificates are good for.

    Raises:
        ConfigError: Nothing of this name is provisioned here, or a number that cannot be.
    """
    if not 1 <= at_once <= _MOST:
        raise ConfigError(f"{at_once} runs at once are outside 1 to {_MOST}", place="--fleet")
    yard = Yard(folder)
    register = load_register(yard)
    if fleet not in register.runs:
        raise ConfigError(f"{fleet!r} was never provisioned here", place="--fleet", remedy="provision it first")
    most = max(register.fleets.get(fleet, 0), at_once)
    save_register(yard, msgspec.structs.replace(register, fleets={**register.fleets, fleet: most}))
    return provision(folder, fleet, (), now=now, days=days)
