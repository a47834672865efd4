# SPDX-License-Identifier: Apache-2.0
"""Command lines in documents: taken out, and checked without running them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import click

from fedcore.command import command

__all__ = ["Block", "check_command", "fedkrso_lines", "indented_lines", "shell_blocks"]


@dataclass(frozen=True)
class Block:
    """A fenced block of shell commands: on which machine, whether its terminal stays busy, whether others must have
    ended before."""

    machine: str
    stays: bool
    waits: bool
    text: str
    line: int


def shell_blocks(path: Path) -> list[Block]:
    """The blocks between ```sh and ``` whose first line says `# MACHINE`, `# MACHINE, ... stays` or `# MACHINE, when
    ... ended`."""
    found = []
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        head = re.match(r"# (\w+)(.*)\n", match[1])
        assert head, f"{path}: a block does not say where it runs: {match[1][:60]!r}"
        found.append(
            Block(head[1], "stays" in head[2], "ended" in head[2], match[1], text.count("\n", 0, match.start()) + 1)
        )
    return found


def indented_lines(path: Path) -> list[str]:
    """Command lines in indented blocks, continuation lines joined, without comments and prompts."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL).replace(
        "\\\n", " "
    )
    lines = (match[1] for match in re.finditer(r"^    (.*)$", text, re.MULTILINE))
    return [re.sub(r"\s+#\s.*$", "", line.removeprefix("$ ")).strip() for line in lines]


def fedkrso_lines(lines: list[str]) -> list[str]:
    """Those that call fedkrso."""
    return [line for line in lines if re.match(r"(\S*/)?fedkrso\s", line)]


def check_command(line: str) -> None:
    """Fail unless click takes this line's subcommand, options and arguments; nothing is run.

    Parsing fills the options' types; callbacks do not start.
    """
    words = shlex.split(line.split("|")[0].split(">")[0].removesuffix("&"))
    group: click.Command = command()
    context = click.Context(group, info_name=words[0])
    rest = words[1:]
    while isinstance(group, click.Group):
        name, found, rest = group.resolve_command(context, rest)
        assert found is not None and name is not None
        group, context = found, click.Context(found, info_name=name, parent=context)
    group.make_context(context.info_name, rest, parent=context.parent)
