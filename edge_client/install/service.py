# SPDX-License-Identifier: Apache-2.0
"""The installed agent as its service manager sees it."""

from __future__ import annotations

import msgspec

from edge_client.install.layout import SERVER, SERVICE, Layout
from edge_client.install.machine import Runner
from fedcore.errors import ConfigError, RunError

__all__ = ["ServiceStatus", "journal", "service_status"]

_PROPERTIES = (
    "LoadState,ActiveState,SubState,StatusText,MainPID,ExecMainStatus,NRestarts,ActiveEnterTimestamp,"
    "MemoryCurrent,MemoryHigh,MemoryMax"
)
_UNKNOWN = 2**64 - 1


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What systemd knows of the agent, and what the agent told it last."""

    state: str
    """`active (running)`, `activating (auto-restart)`, `failed (failed)`, ..."""
    said: str
    """The session's state and the last thing that happened."""
    pid: int | None
    since: str
    """When it became active; empty if it is not."""
    memory_bytes: int | None
    """Agent, worker and their page cache; None where it is not counted."""
    budget_bytes: int | None
    """Where the kernel takes page cache back: the budget."""
    limit_bytes: int | None
    """The wall."""
    restarts: int
    """How often systemd started it again by itself."""
    exit_code: int
    """Of its last life; docs/files.md has the table."""
    server: str = ""
    """State of the server that answers beside it; empty where none is installed."""
    lines: tuple[str, ...] = ()
    """The log's last."""

    @property
    def active(self) -> bool:
        """Whether the service runs, as systemd says."""
        return self.state.startswith("active")

    def text(self) -> str:
        """The service's state in words, for a person."""
        rows = [
            ("service", self.state + (f" since {self.since}" if self.since else "")),
            ("node", self.said or "has not said anything"),
        ]
        if self.memory_bytes is not None:
            rows.append(
                (
                    "memory",
                    f"{self.memory_bytes / 2**20:,.0f} MiB"
                    + (f" of {self.budget_bytes / 2**20:,.0f} MiB" if self.budget_bytes else ""),
                )
            )
        rows.append(("process", f"{self.pid}" if self.pid else f"none; the last one ended with code {self.exit_code}"))
        if self.restarts:
            rows.append(("restarts", str(self.restarts)))
        if self.server:
            rows.append(("answers", self.server))
        return "\n".join([*(f"{name:9} {value}" for name, value in rows), *(f"  {line}" for line in self.lines)])


def service_status(layout: Layout, runner: Runner, *, lines: int) -> ServiceStatus:
    """Ask systemd.

    Raises:
        ConfigError: Nothing is installed.
        RunError: systemd does not answer.
    """
    scope = ("--user",) if layout.user else ()
    called = runner(("systemctl", *scope, "show", SERVICE, f"--property={_PROPERTIES}"))
    if called.code != 0:
        raise RunError(f"systemd does not answer: {called.output.strip()}", place=SERVICE)
    found = dict(line.split("=", 1) for line in called.output.splitlines() if "=" in line)
    if found.get("LoadState") != "loaded":
        remedy = "fedkrso client install" + (" --user" if layout.user else ", or look for one of your own with --user")
        raise ConfigError("nothing is installed", place=str(layout.unit), remedy=remedy)
    server = ""
    if layout.server_unit.exists():
        said = runner(("systemctl", *scope, "show", SERVER, "--property=ActiveState,SubState"))
        about = dict(line.split("=", 1) for line in said.output.splitlines() if "=" in line)
        server = f"{about.get('ActiveState', '?')} ({about.get('SubState', '?')})"
    log = runner((*journal(layout, lines=lines, follow=False, style="cat"), "--quiet")) if lines else None
    return ServiceStatus(
        state=f"{found.get('ActiveState', '?')} ({found.get('SubState', '?')})",
        said=found.get("StatusText", ""),
        pid=_number(found.get("MainPID")) or None,
        since=found.get("ActiveEnterTimestamp", "") if found.get("ActiveState") == "active" else "",
        memory_bytes=_number(found.get("MemoryCurrent")),
        budget_bytes=_number(found.get("MemoryHigh")),
        limit_bytes=_number(found.get("MemoryMax")),
        restarts=_number(found.get("NRestarts")) or 0,
        exit_code=_number(found.get("ExecMainStatus")) or 0,
        server=server,
        lines=tuple(log.output.splitlines()) if log is not None and log.code == 0 else (),
    )


def journal(layout: Layout, *, lines: int, follow: bool, style: str = "short-iso") -> tuple[str, ...]:
    """The command that shows the agent's log."""
    unit = "--user-unit" if layout.user else "--unit"
    return (
        "journalctl",
        unit,
        SERVICE,
        "--lines",
        str(lines),
        "--output",
        style,
        "--follow" if follow else "--no-pager",
    )


def _number(text: str | None) -> int | None:
    """A number that systemd knows; `[not set]`, `infinity` and its largest one mean that it does not."""
    return int(text) if text and text.isdigit() and int(text) < _UNKNOWN else None
