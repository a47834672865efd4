# SPDX-License-Identifier: Apache-2.0
"""Buffered rounds on real parts: broker, coordinator, agents and workers. A node that stands still for some versions
holds nobody, and what it had begun counts; a coordinator that is killed goes on with the buffer that it had."""

from __future__ import annotations

import json
import re
import signal
from contextlib import closing
from pathlib import Path

import pytest
from cluster import needs_mosquitto
from forked_workers import ForkedWorkers
from tiny import Recipe, Tiny
from workshop import Workshop

from coordinator.store.buffer import counting
from coordinator.store.ledger import SqliteLedger

ROUNDS = 6


@pytest.fixture
def tiny(tmp_path: Path, forked_workers: ForkedWorkers) -> Tiny:
    needs_mosquitto()
    return Tiny(
        tmp_path / "run",
        Workshop(tmp_path / "shared", forked_workers),
        Recipe(homes=3, rounds=ROUNDS, buffer_size=2),
    )


@pytest.mark.slow
def test_a_node_that_stood_still_delivers_what_it_had_begun_and_a_killed_coordinator_has_its_buffer(
    tiny: Tiny,
) -> None:
    try:
        tiny.begin()
        # The whole agent stands still once it has heard of round 1: for the others it is slow without end.
        tiny.wait(lambda: re.search("^home-2: round 1", tiny.output(), re.MULTILINE))
        _send(tiny, 2, signal.SIGSTOP)
        tiny.wait(lambda: tiny.mark() >= 3)
        # One of two is left, so a buffer stays half full.
        _send(tiny, 1, signal.SIGSTOP)
        tiny.wait(lambda: f"\nround {tiny.mark()}: update of home-0" in tiny.output())
        tiny.kill_leader()
        tiny.lead()
        _send(tiny, 2, signal.SIGCONT)
        tiny.wait(lambda: len(_updates(tiny, "home-2")) >= 1)
        _send(tiny, 1, signal.SIGCONT)
        tiny.wait(lambda: tiny.ended)
        tiny.wait(lambda: all(home is None or home.poll() is not None for home in tiny.homes))
    finally:
        tiny.close()
    summary = json.loads(tiny.files.summary.read_text())
    assert {node["digest"] for node in summary["nodes"].values()} == {summary["final"]["digest"]}
    with closing(SqliteLedger(tiny.files.ledger)) as ledger:
        rows = ledger.rounds()
        assert [row.round for row in rows] == list(range(1, ROUNDS + 1)) and {
            len(row.participants) for row in rows
        } == {2}
        first = ledger.update(1, "home-2")
        assert first is not None and first.into >= 3
        counted = next(row for row in rows if row.round == first.into)
        assert counted.stale["home-2"][0] == first.into - 1 and summary["rounds"][first.into - 1]["stale"]["home-2"]
        # Every update that was committed counts once: in the round that the ledger names, or in none that opened.
        for row in rows:
            assert tuple(update.header.node for update in counting(ledger, row.round, 10)) == row.participants


def _send(tiny: Tiny, index: int, what: signal.Signals) -> None:
    home = tiny.homes[index]
    assert home is not None
    home.send_signal(what)


def _updates(tiny: Tiny, node: str) -> list[str]:
    return re.findall(f"^round [0-9]+: update of {node}$", tiny.output(), re.MULTILINE)
