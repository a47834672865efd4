# SPDX-License-Identifier: Apache-2.0
"""Every command line of the tutorial and of the deployment guide, without machines: fedkrso takes it, and what it names
was made before."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import check_command, fedkrso_lines, indented_lines, shell_blocks

from coordinator.job import Job
from edge_client.node import Node
from fedcore.command import command
from fedcore.config.reading import load_config

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL, DEPLOY = DOCS / "tutorial.md", DOCS / "deploy.md"
BLOCKS = shell_blocks(TUTORIAL)
_HEREDOC = re.compile(r"(.*?)<<'EOF'\n(.*?)^EOF$", re.MULTILINE | re.DOTALL)


def tutorial_lines() -> list[tuple[str, str]]:
    """Machine and command line, without what is written into files."""
    found = []
    for block in BLOCKS:
        text = _HEREDOC.sub(lambda match: match[1], block.text).replace("\\\n", " ")
        found += [
            (block.machine, line.strip()) for line in text.splitlines() if line.strip() and not line.startswith("#")
        ]
    return found


@pytest.mark.parametrize("line", fedkrso_lines([line for _, line in tutorial_lines()]))
def test_the_tutorials_commands_exist(line: str) -> None:
    check_command(line)


@pytest.mark.parametrize("line", fedkrso_lines(indented_lines(DEPLOY)))
def test_the_guides_commands_exist(line: str) -> None:
    check_command(line)


def test_the_tutorial_is_for_two_machines_and_its_shell_is_right() -> None:
    assert {block.machine for block in BLOCKS} == {"server", "device"} and sum(block.stays for block in BLOCKS) == 4
    for block in BLOCKS:
        done = subprocess.run(
            ["bash", "-n", "-c", block.text], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"line {block.line}: {done.stderr}"
    text = TUTORIAL.read_text()
    found = re.search(r"the server is ([\d.]+) and the device ([\d.]+):", text)
    assert found and set(re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", text)) == {found[1], found[2]}


def test_the_tutorials_files_fit_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provision line is run, the files are written and read as the programs read them, and no line names a file
    before it is there."""
    monkeypatch.chdir(tmp_path)
    made = {"server": {"constraints.txt", "activate"}, "device": {"activate"}}
    for machine, line in tutorial_lines():
        if line.startswith("fedkrso provision"):
            line = line.replace('"$PWD/', f'"{tmp_path}/')
            done = CliRunner().invoke(command(), shlex.split(line)[1:])
            assert done.exit_code == 0, done.output
            made["server"] |= {path.name for path in (tmp_path / "fleet").rglob("*")}
        elif line.startswith("scp") and "nodes/kitchen" in line:
            made["device"] |= {path.name for path in (tmp_path / "fleet/nodes/kitchen").iterdir()}
        for name in re.findall(r"([\w.-]+\.(?:toml|csv|pem|key|conf|html))\b", line):
            written = re.search(rf"> *{re.escape(name)}$", line) and ">>" not in line
            later = {"report.html": "runs show", "mine.csv": "head"}
            assert written or name in made[machine] or name in later, (
                f"{machine}: {line!r} names {name} before it is there"
            )
            made[machine].add(name)
    files = {block.line: _HEREDOC.search(block.text) for block in BLOCKS}
    texts = [
        match[2] for block in BLOCKS for match in _HEREDOC.finditer(block.text) if ".toml" in match[1].splitlines()[-1]
    ]
    assert len(texts) == 3 and any(files.values())
    job, *nodes = texts
    (path := tmp_path / "fleet/coordinator/job.toml").write_text(
        job + (tmp_path / "fleet/coordinator/connection.toml").read_text()
    )
    assert load_config(path, Job).run == "hello"
    for name, text in zip(("kitchen", "desk"), nodes, strict=True):
        own = tmp_path / "fleet/nodes" / name
        (own / "node.toml").write_text(text + (own / "connection.toml").read_text())
        node = load_config(own / "node.toml", Node)
        assert (node.node, node.run) == (name, "hello") and node.data.source == str(own / "mine.csv")


def test_the_guides_folders_are_made_by_its_commands_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every `provision` and `revoke` of the guide is run in its order, each time with what the lines before left."""
    monkeypatch.chdir(tmp_path)
    lines = [line for line in fedkrso_lines(indented_lines(DEPLOY)) if line.split()[1] in ("provision", "revoke")]
    assert len(lines) >= 8
    for line in lines:
        done = CliRunner().invoke(command(), shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}: {done.output}{done.exception}"
    text = DEPLOY.read_text()
    for name in re.findall(r"`fleet/([\w./-]+)`", text):
        if "NAME" not in name and "ID" not in name:
            assert (tmp_path / "fleet" / name).exists(), f"fleet/{name} is not made by the guide's commands"
    for target in re.findall(r"\]\((\w+\.md)", text + TUTORIAL.read_text()):
        assert (DOCS / target).exists(), target
