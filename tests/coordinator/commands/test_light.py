# SPDX-License-Identifier: Apache-2.0
"""Commands that only look at runs load nothing that computes, draws plots or watches a terminal: whoever looks waits for
their start alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import finished_run, killed_run

HEAVY = ("cryptography", "jinja2", "matplotlib", "numpy", "psutil", "rich.live", "starlette", "torch")
PROGRAM = f"""
import sys
from fedcore.command import main
sys.argv = ["fedkrso", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *[name for name in {HEAVY} if name in sys.modules])
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: one that came to its end, and one that was killed."""
    folder = tmp_path_factory.mktemp("runs")
    finished_run(folder, "done")
    killed_run(folder, "killed")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("status", "killed"),
        ("status", "killed", "--json"),
        ("nodes", "done"),
        ("runs", "list"),
        ("runs", "show", "done"),
        ("runs", "compare", "done", "killed"),
    ],
    ids=" ".join,
)
def test_looking_at_runs_loads_nothing_heavy(runs: Path, words: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", PROGRAM, *words, "--runs", str(runs)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.splitlines()
    assert said[-1] == "loaded:"
    assert any(name in line for line in said[:-1] for name in ("done", "killed"))
