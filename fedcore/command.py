# SPDX-License-Identifier: Apache-2.0
"""The command `fedkrso`: finds its subcommands through entry points, and turns every refusal into one line and an exit code."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points

import click

from fedcore.errors import FedkrsoError

__all__ = ["ENTRY_POINTS", "command", "main"]

ENTRY_POINTS = "fedkrso.commands"
_EPILOG = """\b
Exit codes:
  0 done            5 the broker cannot be used      9 the training process failed
  2 wrong file      6 malformed message or update   10 the run cannot go on
  3 wrong data      7 replicas would differ        130 interrupted
  4 wrong model     8 does not fit the memory budget
"""


class _Group(click.Group):
    """Subcommands by name from the entry points; a name with a space is a command of a group. Loaded only when called."""

    def __init__(self, prefix: str, points: dict[str, EntryPoint], **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._prefix, self._points = prefix, points

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({name.removeprefix(self._prefix).split()[0] for name in self._points if name.startswith(self._prefix)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = self._prefix + cmd_name
        if name in self._points:
            try:
                loaded = self._points[name].load()
            except ImportError as error:
                raise click.ClickException(f"this needs a package that is not installed: {error}") from None
            assert isinstance(loaded, click.Command)
            return loaded
        if any(other.startswith(f"{name} ") for other in self._points):
            return _Group(f"{name} ", self._points, name=cmd_name, help=_GROUPS.get(cmd_name, ""))
        return None


_GROUPS = {
    "bench": "Measure this machine (memory and time of training, speed of aggregation), and compare methods.",
    "broker": "A broker of one's own, for a first run.",
    "client": "The edge client: one node of a run.",
    "coordinator": "The coordinator: run, resume, export.",
    "model": "Look at a model before a run.",
}


def command() -> click.Command:
    """The whole command line as one click command."""
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    return _Group("", points, name="fedkrso", epilog=_EPILOG, help="Federated fine-tuning of 8-bit language models on edge devices.")


def main() -> None:
    """Entry point of the program `fedkrso`."""
    try:
        code = command().main(standalone_mode=False)
    except FedkrsoError as error:
        click.echo(f"error: {error.one_line()}", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
