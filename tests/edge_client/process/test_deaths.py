# SPDX-License-Identifier: Apache-2.0
"""Why a worker died, from what is known when it has."""

from __future__ import annotations

import pytest

from edge_client.memory.monitor import Reading
from edge_client.process.deaths import ending, killed_for_memory
from fedcore.worker.process import WorkerDied

BUDGET, TOTAL = 10**9, 8 * 10**9
KILLED = WorkerDied(7, -9, "")
CALM = Reading(0.0, 30_000_000, 5 * 10**8, 4 * 10**9, TOTAL)
OVER = Reading(0.0, 30_000_000, 10**9, 4 * 10**9, TOTAL)
SHORT = Reading(0.0, 30_000_000, 5 * 10**8, TOTAL // 21, TOTAL)


@pytest.mark.parametrize(
    ("kills", "last", "expected"),
    [
        (1, None, True),
        (1, CALM, True),
        (0, CALM, False),
        (None, CALM, False),
        (None, None, False),
        (0, OVER, True),
        (0, SHORT, True),
        (None, Reading(0.0, 0, None), False),
    ],
)
def test_a_kill_is_for_memory_if_it_was_counted_or_memory_was_short(
    kills: int | None, last: Reading | None, expected: bool
) -> None:
    assert killed_for_memory(KILLED, kills, last, BUDGET) is expected


@pytest.mark.parametrize(
    ("returncode", "tail", "expected"),
    [
        (1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", True),
        (1, "MemoryError", True),
        (1, "ValueError: x", False),
        (-11, "", False),
        (0, "", False),
    ],
)
def test_what_was_not_killed_says_itself_whether_it_was_memory(returncode: int, tail: str, expected: bool) -> None:
    # However short memory was.
    assert killed_for_memory(WorkerDied(7, returncode, tail), 3, OVER, BUDGET) is expected


def test_how_it_ended() -> None:
    assert (ending(WorkerDied(7, -11, "")), ending(WorkerDied(7, 3, ""))) == ("signal 11", "exit code 3")
