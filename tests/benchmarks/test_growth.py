# SPDX-License-Identifier: Apache-2.0
"""The benchmark of growth, of few nodes: a real coordinator answers all that is asked of it."""

from __future__ import annotations

import subprocess
import sys


def test_a_coordinator_of_few_nodes_is_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.growth", "--nodes", "4,8", "--rounds", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in done.stdout.splitlines() if "| now |" in line]
    assert {"telemetry: us", "tick: ms", "last word: us"} <= set(rows)
