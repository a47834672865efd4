# SPDX-License-Identifier: Apache-2.0
"""The memory benchmark on a model of one layer: rows come out, and the order of the methods is right."""

from __future__ import annotations

import sys

import pytest

from edge_client.commands.bench_memory import Row, rows
from edge_client.memory.allocator import ALLOCATORS
from fedcore.errors import WorkerError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.chaos
def test_rows_of_a_small_model() -> None:
    measured = list(rows(("fedkrso", "lora"), ("tuned",), steps=1, threads=1, layers=1))
    assert [(row["method"], row["checkpointing"]) for row in measured] == [
        ("fedkrso", False),
        ("lora", False),
        ("fedkrso", True),
        ("lora", True),
    ]
    for row in measured:
        assert row.keys() == Row.__annotations__.keys()
        assert row["allocator"] == "tuned"
        assert 0 < row["static_bytes"] < row["peak_bytes"]
        assert row["step_seconds"] > 0
    ours, lora = measured[:2]
    assert ours["peak_bytes"] - ours["static_bytes"] < 0.6 * (lora["peak_bytes"] - lora["static_bytes"])


def test_a_failing_process_is_an_error_with_its_last_words() -> None:
    with pytest.raises(WorkerError, match="no-such-method"):
        next(rows(("no-such-method",), tuple(ALLOCATORS)))


def test_the_client_process_stays_without_torch() -> None:
    import subprocess

    code = "import sys, edge_client.commands.bench_memory; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
