# SPDX-License-Identifier: Apache-2.0
"""The systemd units of the agent and of the server beside it, as pure functions of what is installed.

What is not in it, because it breaks the work: `PrivateDevices=` and `ProtectClock=` (the latter allows one device and
so forbids the rest) hide the accelerator, `ProcSubset=pid` hides /proc/meminfo and memory pressure,
`MemoryDenyWriteExecute=` forbids the code that torch makes while it runs, `ProtectControlGroups=` the worker's own
memory cgroup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_client.install.layout import SERVER, SERVICE, SLICE, Layout

__all__ = ["Service", "is_hidden", "reading", "slice_text", "unit_text"]

# What ProtectHome= and PrivateTmp= take out of sight; a path in one of these is bound into the service.
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 (named, not used)
# While the training libraries are loaded, the worker may have 512 MiB whatever the budget is, so that a small one is
# refused with numbers.
_LEAST_MEMORY_BYTES = 576 * 2**20
_WATCHDOG_SECONDS = 120
_MIB = 2**20


@dataclass(frozen=True)
class Service:
    """What the unit is for.

    Attributes:
        command: The program and its arguments, absolute.
        budget_bytes: Of the node.
        reads: Files and folders outside of the layout that the service reads: data, model, the program itself.
        role: The agent, or the server that answers beside it.
        shared: Whether both are there, and one slice holds them to the budget.
    """

    command: tuple[str, ...]
    budget_bytes: int
    reads: tuple[Path, ...]
    role: Literal["agent", "server"] = "agent"
    shared: bool = False


def is_hidden(path: Path) -> bool:
    """Whether a service of the device sees a path only if it is bound into it.

    Example:
        >>> is_hidden(Path("/home/ann/mine.csv")), is_hidden(Path("/srv/mine.csv"))
        (True, False)
    """
    return any(path.is_relative_to(hidden) for hidden in _HIDDEN)


def unit_text(layout: Layout, service: Service, systemd: int) -> str:
    """The unit.

    Args:
        layout: Where things lie.
        service: What it is for.
        systemd: Version on the device; keys that it does not know yet are left out.
    """
    sections = {
        "Unit": _unit(layout, service),
        "Service": [*_life(layout, service, systemd), *_memory(layout, service, systemd), *_walls(layout, service)],
        "Install": ["WantedBy=default.target" if layout.user else "WantedBy=multi-user.target"],
    }
    return _head(layout, SERVICE if service.role == "agent" else SERVER) + "\n".join(
        f"[{name}]\n" + "".join(f"{line}\n" for line in lines) for name, lines in sections.items()
    )


def slice_text(layout: Layout, budget_bytes: int) -> str:
    """The unit that holds agent and server to one budget, as `unit_text` holds an agent alone."""
    limits = "".join(f"{line}\n" for line in _limits(budget_bytes))
    return f"{_head(layout, SLICE)}[Unit]\nDescription=fedkrso, one memory budget\n\n[Slice]\n{limits}"


def _head(layout: Layout, name: str) -> str:
    edit = f"systemctl {'--user ' * layout.user}edit {name}"
    return f"# Made by `fedkrso client install`, which makes it again. Your own changes: {edit}\n"


def _unit(layout: Layout, service: Service) -> Iterable[str]:
    yield "Description=fedkrso edge client" if service.role == "agent" else "Description=fedkrso answers"
    # A system's targets are not known to a user's own systemd; there the agent waits for the broker by being started
    # again.
    if not layout.user:
        yield "Wants=network-online.target"
        # Certificates have a first day, and a board without a clock of its own learns the time from the network.
        yield "After=network-online.target time-sync.target"
        for path in service.reads:
            yield f"RequiresMountsFor={_word(path)}"
    # It never gives up; how long it waits is below.
    yield "StartLimitIntervalSec=0"


def _life(layout: Layout, service: Service, systemd: int) -> Iterable[str]:
    yield "Type=notify" if service.role == "agent" else "Type=exec"
    yield f"ExecStart={' '.join(map(_word, service.command))}"
    if service.role == "agent":
        # Reads the node file's budget and policy anew.
        yield "ExecReload=/bin/kill -HUP $MAINPID"
    if layout.user:
        yield f"WorkingDirectory={_specified(str(layout.state))}"
    else:
        yield from (f"User={layout.account}", f"Group={layout.account}", "WorkingDirectory=/var/lib/fedkrso")
        yield from (
            "StateDirectory=fedkrso",
            "StateDirectoryMode=0750",
            "CacheDirectory=fedkrso",
            "CacheDirectoryMode=0750",
        )
    yield "Environment=HF_HUB_OFFLINE=1"
    yield "UMask=0077"
    if service.role == "agent":
        yield f"WatchdogSec={_WATCHDOG_SECONDS}"
    yield from ("Restart=on-failure", "RestartSec=10")
    if systemd >= 254:
        yield from ("RestartSteps=8", "RestartMaxDelaySec=600")
    # A wrong file, wrong data, a wrong model: nothing that trying again would mend.
    yield "RestartPreventExitStatus=2 3 4"
    # It is told first and ends its worker in peace; what is left then is killed.
    yield from ("KillMode=mixed", "TimeoutStopSec=60")


def _memory(layout: Layout, service: Service, systemd: int) -> Iterable[str]:
    if service.shared:
        yield f"Slice={SLICE}"
    yield f"# The budget is kept inside: by the {service.role}, and by the worker's own group. At the budget the kernel"
    yield "# takes page cache back; the wall is a twentieth above, and what it takes then is the worker, not the"
    yield f"# {service.role}."
    yield from _limits(service.budget_bytes)
    yield "Delegate=memory"
    if systemd >= 254:
        yield f"DelegateSubgroup={service.role}"
    yield "OOMPolicy=continue"
    if not layout.user and service.role == "agent":
        yield "OOMScoreAdjust=-200"
    # A core dump would have people's text in it.
    yield "LimitCORE=0"


def _limits(budget_bytes: int) -> Iterable[str]:
    high = max(budget_bytes, _LEAST_MEMORY_BYTES) // _MIB
    yield from (f"MemoryHigh={high}M", f"MemoryMax={high + high // 20}M")


def _walls(layout: Layout, service: Service) -> Iterable[str]:
    yield "NoNewPrivileges=yes"
    yield "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK"
    yield from ("RestrictRealtime=yes", "RestrictSUIDSGID=yes", "LockPersonality=yes", "SystemCallArchitectures=native")
    if layout.user:
        # The rest needs root, or name spaces that not every system gives to users.
        return
    yield from ("CapabilityBoundingSet=", "SystemCallFilter=@system-service", "SystemCallErrorNumber=EPERM")
    yield from ("ProtectSystem=strict", "PrivateTmp=yes", "ProtectHome=tmpfs")
    for path in service.reads:
        if is_hidden(path):
            # What is not there is told by the agent, with the key that names it.
            yield f"BindReadOnlyPaths=-{_word(path).replace(':', chr(92) + ':')}"
    yield from ("ProtectKernelTunables=yes", "ProtectKernelModules=yes", "ProtectKernelLogs=yes", "ProtectHostname=yes")
    yield from ("ProtectProc=invisible", "RestrictNamespaces=yes", "KeyringMode=private", "RemoveIPC=yes")


def _specified(text: str) -> str:
    """With systemd's specifiers taken as they are."""
    return text.replace("%", "%%")


def _word(value: object) -> str:
    """One word of a list, quoted where systemd would split or read it."""
    text = _specified(str(value)).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if any(character in text for character in " \t'\"\\;") else text


def reading(paths: Sequence[Path]) -> tuple[Path, ...]:
    """What is to be bound, without what lies in another of them."""
    unique = sorted(set(paths))
    return tuple(path for path in unique if not any(path != other and path.is_relative_to(other) for other in unique))
