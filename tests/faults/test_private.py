# SPDX-License-Identifier: Apache-2.0
"""Runs that promise privacy, as processes: real broker, coordinator, agents and workers. A coordinator that is killed
in the middle spends no more, the run ends where its target is spent, and everybody holds the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster import needs_mosquitto
from dp_accounting import DpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent, rdp
from forked_workers import ForkedWorkers
from masked import Masked
from tiny import Recipe, Tiny
from workshop import Workshop

HOMES, ROUNDS = 2, 2
NODE = "[privacy.node]\nclip = 0.5\ndelta = 1e-2\nnoise_multiplier = 2.0\ntarget_epsilon = 2.2\n"
EXAMPLE = "[privacy.example]\nclip = 0.5\ndelta = 1e-3\nnoise_multiplier = 1.0\nleast_examples = 16\n"


class Private(Tiny):
    """A run of more rounds than its target lets it have, or of as many."""

    privacy = NODE
    asked = ROUNDS + 2

    def _job_text(self) -> str:
        text = super()._job_text().replace(f"rounds = {self.recipe.rounds}", f"rounds = {self.asked}")
        return f"{text}\n\n{self.privacy}"


class PrivateOfExamples(Private):
    """A run whose nodes' owners want it, too."""

    privacy = EXAMPLE
    asked = ROUNDS

    def _node_text(self, index: int) -> str:
        text = super()._node_text(index)
        return text.replace("threads = 1\n", 'threads = 1\nprivacy = "example"\n')


class PrivateAndMasked(Private, Masked):
    """A run whose nodes add the noise themselves, before they mask."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, forked_workers: ForkedWorkers) -> Workshop:
    needs_mosquitto()
    return Workshop(tmp_path_factory.mktemp("workshop"), forked_workers)


def epsilon(event: DpEvent, count: int, delta: float) -> float:
    accountant = rdp.RdpAccountant()
    accountant.compose(SelfComposedDpEvent(event, count))
    return float(accountant.get_epsilon(delta))


def run(
    kind: type[Private], folder: Path, workshop: Workshop, *, kill: bool, homes: int = HOMES
) -> tuple[dict[str, Any], str, str]:
    """Summary, report, and all that was said."""
    tiny, killed = kind(folder, workshop, Recipe(homes=homes, rounds=ROUNDS)), list[bool]()

    def watch() -> None:
        if kill and not killed and tiny.mark() == ROUNDS:
            killed.append(True)
            tiny.kill_leader()
            tiny.lead()

    try:
        tiny.finish(watch)
        tiny.check()
        assert bool(killed) == kill
        tiny.wait(lambda: tiny.leader is None or tiny.leader.poll() is not None)
        return tiny.found(), tiny.files.report.read_text(), tiny.output()
    finally:
        tiny.close()


@pytest.mark.slow
def test_a_run_that_hides_nodes_ends_where_its_target_is_spent(tmp_path: Path, workshop: Workshop) -> None:
    summary, report, output = run(Private, tmp_path / "run", workshop, kill=True)
    spent = summary["privacy"]
    assert spent["epsilon"] == pytest.approx(epsilon(GaussianDpEvent(2.0), ROUNDS, 1e-2))
    assert spent["epsilon"] <= 2.2 < epsilon(GaussianDpEvent(2.0), ROUNDS + 1, 1e-2)
    assert [row["epsilon"] for row in summary["rounds"]] == sorted(row["epsilon"] for row in summary["rounds"])
    # No update counts with more than the clip, and none weighs more than another.
    assert all(norm <= 0.55 for row in summary["rounds"] for norm in row["norms"].values())
    assert not any(row["capped"] for row in summary["rounds"])
    assert "the run ends there, since round 3 of 4 would take epsilon to" in output
    assert spent["words"] in output and spent["words"] in report


@pytest.mark.slow
def test_nodes_that_add_the_noise_themselves_spend_the_same(tmp_path: Path, workshop: Workshop) -> None:
    """Masks and noise together, with the coordinator killed: it learns no update, and what it learns has its noise."""
    summary, report, output = run(PrivateAndMasked, tmp_path / "run", workshop, kill=True, homes=3)
    spent = summary["privacy"]
    assert spent["epsilon"] == pytest.approx(epsilon(GaussianDpEvent(2.0), ROUNDS, 1e-2))
    assert spent["words"] in output and spent["words"] in report
    assert f"round {ROUNDS}: masked with 2 nodes" in output and not any(row["norms"] for row in summary["rounds"])


@pytest.mark.slow
def test_a_run_that_hides_examples_counts_their_steps(tmp_path: Path, workshop: Workshop) -> None:
    summary, report, output = run(PrivateOfExamples, tmp_path / "run", workshop, kill=False)
    spent, event = summary["privacy"], PoissonSampledDpEvent(4 / 16, GaussianDpEvent(1.0))
    assert spent["epsilon"] == pytest.approx(epsilon(event, ROUNDS * 8, 1e-3))
    assert spent["words"] in output and spent["words"] in report
