# SPDX-License-Identifier: Apache-2.0
"""From one version to another and, unless the other reports, back: killed at any instant, what is left either runs or
is left again after three starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from edge_client.install.machine import Runner
from edge_client.upgrade.slots import Pinned, Slots, Trying
from fedcore.errors import ConfigError, RunError

__all__ = ["MOST_STARTS", "Service", "back", "change", "reported", "settle"]

MOST_STARTS = 3
_MOST_REFUSED = 50


@dataclass(frozen=True)
class Service:
    """How the agent is started again and looked at.

    Attributes:
        restart: A command that ends with 0 once the agent has been started and has reported, as `systemctl restart`
            does for a unit of type notify.
        alive: A command that ends with 0 while it runs.
        probation_seconds: For so long it must go on running.
    """

    restart: Sequence[str]
    alive: Sequence[str]
    probation_seconds: float = 30.0


def change(
    slots: Slots,
    pinned: Pinned,
    sources: tuple[str, ...],
    service: Service,
    runner: Runner,
    *,
    again: bool = False,
    say: Callable[[str], None] = lambda line: None,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Have another version run.

    Args:
        slots: Where versions lie.
        pinned: Which version, by its hash.
        sources: Where pip finds wheels.
        service: The agent's.
        runner: Calls programs.
        again: Also one that did not report before.
        say: Gets a line for each thing that is done.
        sleep: Waits so many seconds.

    Returns:
        Whether anything changed; False where it runs already.

    Raises:
        RunError: It cannot be installed; or it did not report, and the version before runs again.
    """
    settle(slots, started=False)
    if pinned.sha256 in slots.kept.refused and not again:
        raise RunError(
            f"version {pinned.version} did not report here before", place=str(slots.folder), remedy="--again tries it"
        )
    before = slots.current
    if slots.version(before) == pinned.version:
        return False
    say(f"installing {pinned.version} beside {slots.version(before)}")
    slot = slots.make(pinned, sources)
    refused = tuple(one for one in slots.kept.refused if one != pinned.sha256)
    trying = Trying(slot=slot, before=before, pinned=pinned)
    slots.keep(trying=trying, refused=refused)
    slots.point(slot)
    say(f"starting {pinned.version}")
    why = _report_of(service, runner, sleep)
    if not why:
        reported(slots)
        say(f"{pinned.version} runs, and has reported")
        return True
    _give_up(slots, trying)
    say(f"{pinned.version} {why}: back to {slots.version(before)}")
    called = runner(service.restart)
    also = "" if called.code == 0 else "; the version before did not report either"
    raise RunError(
        f"version {pinned.version} {why}, {slots.version(before)} runs again{also}",
        place=str(slots.folder),
        remedy="fedkrso client logs says why",
    )


def back(slots: Slots, service: Service, runner: Runner) -> str:
    """Have the version before run again.

    Args:
        slots: Where versions lie.
        service: The agent's.
        runner: Calls programs.

    Returns:
        The version that runs now.

    Raises:
        ConfigError: There is none.
        RunError: It did not report; it stays what runs at the next start.
    """
    to, now = slots.kept.before, slots.current
    if to == now or not slots.version(to):
        raise ConfigError("there is no version before this one", place=str(slots.folder))
    slots.keep(trying=None, before=now)
    slots.point(to)
    if runner(service.restart).code != 0:
        raise RunError(f"{slots.version(to)} did not report", place=str(slots.folder), remedy="fedkrso client logs")
    return slots.version(to)


def settle(slots: Slots, *, started: bool) -> None:
    """Before a start: a version that has been started too often without a report is left. So a device whose power went
    during a trial comes back by itself.

    Args:
        slots: Where versions lie.
        started: Whether the agent is about to be started.
    """
    trying = slots.kept.trying
    if trying is None:
        return
    if started and slots.current == trying.slot and trying.starts < MOST_STARTS:
        slots.keep(trying=msgspec.structs.replace(trying, starts=trying.starts + 1))
    else:
        # It was started in vain, or another change begins and this one never came to its end.
        _give_up(slots, trying)


def reported(slots: Slots) -> None:
    """The version on trial has reported: it stays."""
    if (trying := slots.kept.trying) is not None and slots.current == trying.slot:
        slots.keep(trying=None, before=trying.before)


def _give_up(slots: Slots, trying: Trying) -> None:
    # The link first: killed in between, it is done again.
    slots.point(trying.before)
    refused = (*slots.kept.refused, trying.pinned.sha256)[-_MOST_REFUSED:]
    slots.keep(trying=None, refused=refused)


def _report_of(service: Service, runner: Runner, sleep: Callable[[float], None]) -> str:
    """Why it does not count as reported; empty where it does."""
    called = runner(service.restart)
    if called.code != 0:
        return "did not report"
    left = service.probation_seconds
    while left > 0:
        sleep(min(left, 1.0))
        left -= 1.0
        if runner(service.alive).code != 0:
            return "ended soon after it had reported"
    return ""
