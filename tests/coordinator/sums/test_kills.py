# SPDX-License-Identifier: Apache-2.0
"""Runs whose coordinator, nats-servers, workers, PostgreSQL and S3 server are killed at random end with the digest that
additions alone come to. More of them: `python -m benchmarks.scale.kills`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import needs_nats

from tests.postgres import needs_postgres
from tests.s3 import needs_s3


@pytest.mark.chaos
def test_runs_whose_engines_are_killed_end_with_the_same_digest(tmp_path: Path) -> None:
    needs_nats()
    needs_postgres()
    needs_s3()
    out, runs = tmp_path / "kills.jsonl", 6
    command = [sys.executable, "-m", "benchmarks.scale.kills", "--runs", str(runs), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == runs and not [row["error"] for row in rows if "error" in row]
    assert all(row["exactly_once"] and row["digest_of_one_process"] for row in rows), rows
    assert sum(number for row in rows for key, number in row.items() if key.startswith("kill ")) >= runs
