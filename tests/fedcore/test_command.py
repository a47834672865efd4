# SPDX-License-Identifier: Apache-2.0
"""The list of commands is read, not imported, and says what importing would say."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest

from fedcore.command import ENTRY_POINTS, _Group, _Installed, _Points, command


def test_each_command_is_listed_with_the_words_of_its_own_docstring() -> None:
    group = _Group("", _Points.found())
    for name in ("doctor", "profile", "try", "client"):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert group._listed(name).get_short_help_str(60) == command.get_short_help_str(60) != ""


def test_help_imports_no_command() -> None:
    code = (
        "import sys\nsys.argv = ['fedkrso', '--help']\nfrom fedcore.command import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in sys.modules if '.commands' in name or name in ('numpy', 'rich', 'torch', 'msgspec')])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]" and "profile" in said


def test_what_is_not_installed_is_found_through_other_files(tmp_path: Path) -> None:
    path = tmp_path / "command.py"
    path.write_text("import os\nfrom fedcore.errors import ConfigError\n\ndef f():\n    import torch_of_tomorrow\n")
    installed = _Installed()
    assert installed.missing(str(path)) is None
    path.write_text("from torch_of_tomorrow.x import (\n    y,\n)\n")
    assert installed.missing(str(path)) == "torch_of_tomorrow"


def test_packages_of_others_that_are_installed_beside_ours_are_not_looked_into(tmp_path: Path) -> None:
    installed = _Installed()
    installed._here = str(tmp_path)
    (tmp_path / "msgspec").mkdir()
    (tmp_path / "msgspec" / "__init__.py").write_text("from ._core import Struct\nimport only_on_windows\n")
    path = tmp_path / "one.py"
    path.write_text("import msgspec\n")
    assert installed.missing(str(path)) is None


def test_a_command_of_a_package_that_is_not_there_says_what_it_needs() -> None:
    lost = EntryPoint("lost", "no_such_package.x:y", ENTRY_POINTS)
    assert _Group("", _Points([lost]))._listed("lost").short_help == "Needs more: pip install no_such_package"


def test_commands_of_other_packages_are_looked_for_when_ours_have_no_such_name(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = list[str]()

    def elsewhere(group: str) -> list[EntryPoint]:
        looked.append(group)
        return [EntryPoint(name, "tests.fedcore.test_command:theirs", ENTRY_POINTS) for name in ("theirs", "runs more")]

    monkeypatch.setattr("fedcore.command.entry_points", elsewhere)
    whole = command()
    assert isinstance(whole, _Group)
    context = click.Context(whole)
    assert whole.get_command(context, "status") is not None and isinstance(whole.get_command(context, "runs"), _Group)
    assert looked == []
    assert whole.get_command(context, "theirs") is theirs and whole.get_command(context, "there") is None
    runs = whole.get_command(context, "runs")
    assert isinstance(runs, _Group) and {"list", "more"} <= set(runs.list_commands(context))
    assert runs.get_command(context, "more") is theirs and looked == [ENTRY_POINTS]


@click.command()
def theirs() -> None:
    """A command of another package."""
