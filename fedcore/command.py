# SPDX-License-Identifier: Apache-2.0
"""The command `fedkrso`: finds its subcommands through entry points, and turns every refusal into one line and an exit
code."""

from __future__ import annotations

import ast
import difflib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import metadata
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

import click

from fedcore.errors import ConfigError, FedkrsoError
from fedcore.system.logs import journal_prefix

__all__ = ["ENTRY_POINTS", "command", "main"]

ENTRY_POINTS = "fedkrso.commands"
_EPILOG = """\b
Exit codes:
  0 done            5 the broker cannot be used                 10 the run cannot go on
  2 wrong file      6 malformed message or update               11 no room on the disk
  3 wrong data      7 replicas would differ                    130 interrupted
  4 wrong model     8 does not fit the memory budget
                    9 cannot train, or the training failed
"""


class _Group(click.Group):
    """Subcommands by name from the entry points; a name with a space is a command of a group. Loaded only when
    called."""

    def __init__(self, prefix: str, points: _Points, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._prefix, self._points, self._installed = prefix, points, _Installed()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(
            {name.removeprefix(self._prefix).split()[0] for name in self._points.all if name.startswith(self._prefix)}
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, each with the first words of its docstring, of which nothing is imported."""
        names = self.list_commands(ctx)
        room = formatter.width - 6 - max(map(len, names), default=0)
        rows = [(name, self._listed(name).get_short_help_str(room)) for name in names]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def _listed(self, name: str) -> click.Command:
        """A command that knows what it is for, and cannot be called."""
        point = self._points.get(self._prefix + name)
        if point is None:
            return click.Command(name, help=_GROUPS.get(name, ""))
        try:
            module, said = _source_of(point)
        except (OSError, SyntaxError, LookupError):
            # No source to read, or written in another way.
            return self.get_command(click.Context(self), name) or click.Command(name)
        if (missing := self._installed.missing(str(module))) is not None:
            error = _not_installed(ModuleNotFoundError(name=missing), point)
            return click.Command(name, short_help=f"Needs more: {error.remedy}")
        return click.Command(name, help=said)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = self._prefix + cmd_name
        if (point := self._points.get(name)) is not None:
            try:
                loaded = point.load()
            except ModuleNotFoundError as error:
                return _refusing(cmd_name, _not_installed(error, point))
            assert isinstance(loaded, click.Command)
            return loaded
        if self._points.is_group(name):
            return _Group(f"{name} ", self._points, name=cmd_name, help=_GROUPS.get(cmd_name, ""))
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.list_commands(ctx), 3)
            # `fedkrso resume` lies in a group; `fedkrso runs list` may be meant by `fedkrso list`.
            near = [f"{ctx.command_path} {one}" for one in near]
            near += [
                f"{ctx.find_root().command_path} {other}" for other in self._points.all if other.split()[-1] == name
            ]
            hint = f" Did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)


class _Points:
    """Commands by name: our own package's, and those of all that are installed once others are asked for, since
    looking through hundreds of packages takes as long as what many a command does.

    Args:
        own: Our own ones.
    """

    def __init__(self, own: Iterable[EntryPoint]) -> None:
        self._own = {point.name: point for point in own if point.group == ENTRY_POINTS}

    @cached_property
    def all(self) -> dict[str, EntryPoint]:
        """Every command."""
        return {**{point.name: point for point in entry_points(group=ENTRY_POINTS)}, **self._own}

    def get(self, name: str) -> EntryPoint | None:
        """A command."""
        return self._own.get(name) or (None if self._begins(name, self._own) else self.all.get(name))

    def is_group(self, name: str) -> bool:
        """Whether there are commands of a group."""
        return self._begins(name, self._own) or self._begins(name, self.all)

    @classmethod
    def found(cls) -> _Points:
        """Those of this installation."""
        try:
            return cls(metadata.distribution("fedkrso").entry_points)
        except metadata.PackageNotFoundError:
            return cls(())

    @staticmethod
    def _begins(name: str, points: dict[str, EntryPoint]) -> bool:
        return any(other.startswith(f"{name} ") for other in points)


_GROUPS = {
    "bench": "Measure this machine (memory and time of training, speed of aggregation), and compare methods.",
    "broker": "A broker of one's own, for a first run.",
    "client": "The edge client: one node of a run.",
    "coordinator": "The coordinator: run, resume, export.",
    "data": "Look at a node's data before a run.",
    "model": "Look at a model before a run.",
    "server": "Many runs on one fleet: serve, submit, list, stop, log.",
    "runs": "Runs on this machine: list, show, export, compare, prune.",
}


def _source_of(point: EntryPoint) -> tuple[Path, str]:
    """The file of a command's function, and its docstring.

    Raises:
        OSError, SyntaxError, LookupError: It cannot be read from there.
    """
    root, *inner = point.module.split(".")
    spec = find_spec(root)
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(point.module)
    path = Path(next(iter(spec.submodule_search_locations)), *inner).with_suffix(".py")
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name == point.attr:
            return path, ast.get_docstring(node) or ""
    raise LookupError(point.value)


# What is imported when a module is: not within a function, nor for a type checker alone.
_OURS = ("coordinator", "devices", "edge_client", "examples", "fedcore", "fedkrso", "research")
_IMPORTS = re.compile(r"^(?:from|import) ([\w.]+)", re.MULTILINE)


class _Installed:
    """What of the packages that files of ours import is not installed."""

    def __init__(self) -> None:
        self._here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - quicker
        self._there: dict[str, bool] = {"__future__": True}
        self._complete: set[str] = set()

    def missing(self, path: str) -> str | None:
        """The first package that a file imports, itself or through others of ours, and that is not there."""
        seen, waiting = {path}, [path]
        while waiting:
            with open(waiting.pop(), encoding="utf-8") as file:  # noqa: PTH123
                text = file.read()
            for name in _IMPORTS.findall(text):
                root = name.partition(".")[0]
                if root not in self._there:
                    self._there[root] = root in sys.modules or find_spec(root) is not None
                if not self._there[root]:
                    return str(root)
                if root not in _OURS:
                    # Where fedkrso is installed, everybody else's files lie beside ours.
                    continue
                beside = f"{self._here}{os.sep}{name.replace('.', os.sep)}"
                for other in (f"{beside}.py", f"{beside}{os.sep}__init__.py"):
                    if other not in seen and other not in self._complete and os.path.isfile(other):  # noqa: PTH113
                        seen.add(other)
                        waiting.append(other)
        self._complete |= seen
        return None


def command() -> click.Command:
    """The whole command line as one click command."""
    whole = _Group(
        "",
        _Points.found(),
        name="fedkrso",
        epilog=_EPILOG,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Federated fine-tuning of 8-bit language models on edge devices.",
    )
    return click.version_option(package_name="fedkrso", prog_name="fedkrso", message="%(prog)s %(version)s")(whole)


def _distribution(error: ModuleNotFoundError) -> str:
    """Whose module is missing."""
    package = (error.name or "").partition(".")[0]
    return "fedkrso" if package in _OURS else package


def _not_installed(error: ModuleNotFoundError, point: EntryPoint | None) -> ConfigError:
    """A refusal that names the extra in which the missing package is; the command's own side first, where both have
    it."""
    package = _distribution(error)
    if package in ("", "fedkrso"):
        # Our own are always there; one that is not is a fault to be seen.
        raise error
    extras = [
        found.group(1)
        for requirement in metadata.requires("fedkrso") or ()
        if re.split(r"[^\w.-]", requirement)[0].lower().replace("-", "_") == package.lower()
        and (found := re.search(r"extra == ['\"](\w+)['\"]", requirement)) is not None
    ]
    own = "coordinator" if point is not None and point.value.startswith("coordinator.") else "train"
    extra = next(iter(sorted(extras, key=lambda name: name != own)), "")
    wanted = f"'fedkrso[{extra}]'" if extra else package
    return ConfigError(f"this command needs {package}, which is not installed", remedy=f"pip install {wanted}")


def _refusing(name: str, error: ConfigError) -> click.Command:
    """Stands for a command whose packages are not installed, so that the others can be listed."""

    def refuse() -> None:
        raise error

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(
        name,
        callback=refuse,
        short_help=f"Needs more: {error.remedy}",
        add_help_option=False,
        context_settings=anything,
    )


def _run(words: Sequence[str]) -> object:
    try:
        return command().main(list(words), standalone_mode=False)
    except ModuleNotFoundError as error:
        points = _Points.found()
        raise _not_installed(error, points.get(" ".join(words[:2])) or points.get("".join(words[:1]))) from None


def main() -> None:
    """Entry point of the program `fedkrso`."""
    try:
        code = _run(sys.argv[1:])
    except FedkrsoError as error:
        click.echo(f"{journal_prefix(sys.stderr, os.environ)('error')}error: {error.one_line()}", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
