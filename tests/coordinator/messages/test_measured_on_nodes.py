# SPDX-License-Identifier: Apache-2.0
"""What nodes measure, over the wire: summed exactly, a liar by its share, and nothing that is learned depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from coordinator.job import EvaluationSection, SafetySection
from coordinator.reports.summary import summary_of
from tests.coordinator.messages.one_round import HONEST, Run, Write, good, measured


@pytest.fixture
def make_run(tmp_path: Path) -> Iterable[Callable[[str], Run]]:
    made: list[Run] = []

    def make(name: str) -> Run:
        made.append(Run(tmp_path / name))
        return made[-1]

    yield make
    for run in made:
        run.ledger.close()


ON_NODES = EvaluationSection(where="nodes")


def test_what_nodes_measure_is_summed_a_liar_counts_by_its_share_and_the_digest_does_not_change(
    make_run: Callable[[str], Run],
) -> None:
    plain, measuring = make_run("plain"), make_run("measuring")
    plain.go({**HONEST, "liar": good(3)}, SafetySection())

    def claiming(seed: int, rows: int, right: int, examples: int = 50) -> Write:
        write, found = good(seed, examples=examples), measured(rows, right)
        return lambda path, header: write(path, msgspec.structs.replace(header, measured=found))

    sends = {
        "good-1": claiming(1, 8, 8),
        "good-2": claiming(2, 8, 4, examples=80),
        "liar": claiming(3, 10**6, 0),
        "odd": claiming(9, 8, 9),
    }
    # The state before the first round comes with the updates, the last one with the nodes' last word.
    last = {"good-1": measured(8, 8, version=1), "good-2": measured(8, 9, version=1), "liar": measured(8, 6, version=0)}
    answers = measuring.go(sends, SafetySection(max_share_ratio=2.0), evaluation=ON_NODES, last=last)
    assert {name for name, said in answers.items() if said} == {"odd"} and "accuracy 1.12" in answers["odd"]
    assert measuring.view.digest == plain.view.digest
    start = measuring.view.start
    assert start is not None and start.capped == ("liar",) and start.accuracy == (8 + 4) / (8 + 8 + 16)
    assert start.scores["liar"].accuracy == 0.0 and start.scores["good-2"].accuracy == 0.5
    assert measuring.view.rows[0].nodes is not None
    assert list(measuring.view.rows[0].nodes.scores) == ["good-1"]
    assert "accuracy 1.12" in measuring.said("refused")["good-2"] and "liar" not in measuring.said("refused")
    # As a report says it.
    summary = summary_of(measuring.view)
    assert summary["best"] == {"round": 1, "by": "nodes.accuracy", "value": 1.0}
    assert summary["start_on_nodes"]["spread"]["worst"] == {"liar": 0.0, "good-2": 0.5, "good-1": 1.0}
